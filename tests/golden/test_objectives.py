"""Every golden case through the door a user takes: OBJECTIVES.build, prepare, loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Experience, Scores
from genrl.objectives import OBJECTIVES, PolicyObjective, live_prompts
from genrl.objectives.credit import DecoupledCredit, GroupNorm, normalized, whitened
from genrl.objectives.gbpo import GradientBounded
from genrl.objectives.sage import PhiRatio, category_entropy
from genrl.objectives.sapo import matched
from genrl.objectives.terms import ClippedRatio, clipped, k3, log_ratios, ratio
from genrl.objectives.variants import CappedRatio
from genrl.selftest.golden import Case, build, numbers, per_token
from tests.helpers import assert_same


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(Path(request.config.getoption("--golden")).read_text())


@pytest.fixture
def case(golden: dict[str, Any], golden_case: str) -> Case:
    return build(golden, golden_case)


def test_advantages_loss_and_gradient(case):
    experience = case.prepared()
    assert_same(experience.advantages, per_token(case.expected["advantages"], case))
    loss, gradient = case.run(experience, case.logps)
    assert_same(loss, case.expected["loss"])
    assert_same(gradient, case.expected["grad_logp_new"])
    assert_same(gradient.abs().sum(), case.expected["grad_abs_sum"])


@pytest.mark.parametrize("parts", [[[0], [1]], [[1], [0]]])
def test_losses_and_gradients_of_micro_batches_add_up(case, parts):
    experience = case.prepared()
    rows = torch.arange(case.logps.shape[0]).view(len(experience), -1)
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(case.logps)
    for part in parts:
        prompts = torch.tensor(part)
        chosen = rows[prompts].flatten()
        part_loss, part_gradient = case.run(experience.groups(prompts), case.logps[chosen])
        loss = loss + part_loss
        gradient[chosen] += part_gradient
    assert_same(loss, case.expected["loss"])
    assert_same(gradient, case.expected["grad_logp_new"])


def test_every_case_has_an_objective(golden):
    assert golden["cases"]
    for name in golden["cases"]:
        build(golden, name)


def _first_chosen(values: Tensor, case: Case) -> Tensor:
    """Value of a row, where all its chosen tokens share one."""
    places = case.rollout.chosen.to(torch.int64).argmax(1, keepdim=True)
    return values.expand(case.rollout.chosen.shape).gather(1, places)[:, 0]


def _ratio_extras(case: Case, experience: Experience, surrogate: ClippedRatio) -> dict[str, Tensor]:
    scores = Scores(case.logps)
    ratios = ratio(log_ratios(scores, case.rollout), case.rollout, surrogate.level)
    low, high = (torch.as_tensor(bound).expand(ratios.shape) for bound in surrogate.bounds(experience))
    flat = clipped(ratios, experience.advantages, low, high, surrogate.dual_clip)
    rows = _first_chosen(ratios, case)
    return {
        "seq_ratio": rows,
        "r_slate": rows,
        "clip_low": _first_chosen(low, case),
        "clip_high": _first_chosen(high, case),
        "c_low": low[0, 0],
        "c_high": high[0, 0],
        "zero_gradient": _first_chosen(flat, case),
        "clipped_seqs": _first_chosen(flat, case),
        # A token with A = 0 counts as clipped by its ratio alone, as in the file.
        "clipped_tokens": (flat & case.rollout.chosen).sum(),
    }


def _phi_extras(case: Case, experience: Experience, surrogate: PhiRatio) -> dict[str, Tensor]:
    ratios, phi = (_first_chosen(values, case) for values in surrogate.ratios(Scores(case.logps), experience))
    return {"r_slate": ratios, "Phi": phi, "coefficient": ratios / phi}


def _bounded_extras(case: Case, experience: Experience, surrogate: GradientBounded) -> dict[str, Tensor]:
    ratios, _ = surrogate.ratios(Scores(case.logps), experience)
    return {"weight": ratios.squeeze(1) if surrogate.level == "item" else ratios}


def _capped_extras(case: Case, experience: Experience, surrogate: CappedRatio) -> dict[str, Tensor]:
    ratios = surrogate.capped(Scores(case.logps), experience)
    rows = surrogate.level == "product"
    plain = ratio(log_ratios(Scores(case.logps), case.rollout), case.rollout, surrogate.level)
    return {
        "ratio_prime": _first_chosen(ratios, case) if rows else ratios,
        "raw_ratio": _first_chosen(plain, case),
        "early_clipped_tokens": ((plain - ratios > 1e-12) & case.rollout.chosen).sum(),
    }


EXTRAS = {
    ClippedRatio: _ratio_extras,
    PhiRatio: _phi_extras,
    GradientBounded: _bounded_extras,
    CappedRatio: _capped_extras,
}


def exposed(case: Case) -> dict[str, Tensor]:
    """What the objective shows of its insides, under the names of the file."""
    experience, objective = case.prepared(), case.objective
    assert isinstance(objective, PolicyObjective)
    shown: dict[str, Tensor] = {}
    for kind, extras in EXTRAS.items():
        if isinstance(objective.surrogate, kind):
            shown |= extras(case, experience, objective.surrogate)
    if "lambda" in experience.extras:
        shown["lam"] = experience.extras["lambda"]
    if isinstance(objective.credit, DecoupledCredit):
        summed = objective.credit.summed(case.rewards, case.rollout.group_size)
        apart = [
            objective.credit.norm(case.rewards.components[m], case.rollout.group_size) for m in case.rewards.weights
        ]
        shown |= {"pre_batch_norm": summed, "per_reward_advantage": torch.stack(apart, 1)}
        shown |= {"per_objective_advantage": shown["per_reward_advantage"], "pre_batch_std_ddof1": summed.std()}
    if case.rollout.ref_logps is not None:
        kl = (experience.weights * k3(case.logps, case.rollout.ref_logps)).sum()
        coefficient = sum(penalty.coef for penalty in objective.penalties)
        loss, _ = case.run(experience, case.logps)
        shown |= {"kl_mean": kl, "policy_loss": loss - coefficient * kl}
    return shown


def test_insides(case):
    shown = exposed(case)
    compared = [name for name in shown if name in case.expected]
    for name in compared:
        found = shown[name]
        assert_same(found.double() if found.is_floating_point() else found.to(torch.int64), _plain(case.expected[name]))


def test_the_insides_of_the_file_are_nearly_all_compared(golden):
    compared = {key for name in golden["cases"] for key in exposed(build(golden, name)) if key in golden["cases"][name]}
    assert compared >= {
        *("seq_ratio", "clipped_seqs", "r_slate", "clip_low", "clip_high", "c_low", "c_high", "zero_gradient", "Phi"),
        *("coefficient", "lam", "weight", "ratio_prime", "raw_ratio", "early_clipped_tokens", "clipped_tokens"),
        *("pre_batch_norm", "per_reward_advantage", "per_objective_advantage", "pre_batch_std_ddof1"),
        *("kl_mean", "policy_loss"),
    }


def _plain(value: object) -> object:
    """Booleans as numbers, so that lists of them compare with counts."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, bool) else value


NORMS = {
    "verl_ddof1_eps1e6": GroupNorm(ddof=1, eps=1e-6),
    "trl_ddof1_eps1e4": GroupNorm(ddof=1, eps=1e-4),
    "paper_ddof0_eps0": GroupNorm(ddof=0, eps=0.0),
    "dr_grpo_centered": GroupNorm(normalize="mean"),
}


def test_advantage_variants(golden):
    size = golden["token_setup"]["group"].count(golden["token_setup"]["group"][0])
    compared = 0
    for variants in golden["advantage_variants"].values():
        for name, norm in NORMS.items():
            if name in variants:
                assert_same(normalized(numbers(variants["reward"]), size, norm), variants[name])
                compared += 1
    assert compared == sum(name in NORMS for variants in golden["advantage_variants"].values() for name in variants)


def test_groups_kept_by_dynamic_sampling_and_the_denominator_of_all_tokens(golden):
    case = build(golden, "dapo_dynamic_sampling_drop")
    kept = golden["advantage_variants"]["zero_variance_second_group"]["kept_by_dynamic_sampling"]
    assert live_prompts(case.prepared()).tolist() == kept
    everything = replace(case, objective=OBJECTIVES.build("dapo", {"denominator": "all"}))
    loss, _ = everything.run(everything.prepared(), case.logps)
    assert_same(loss, case.expected["loss_without_filtering"])


def test_bapo_search_trace(golden):
    for name in (key for key in golden["cases"] if key.startswith("bapo")):
        case = build(golden, name)
        bounds = case.objective.surrogate.bounds
        ratios = log_ratios(Scores(case.logps), case.rollout).exp()
        balance = bounds.balance(ratios, case.prepared().advantages, case.rollout)
        trace = torch.cat([torch.tensor(bounds.path(), dtype=torch.float64), balance[:, None]], 1)
        assert_same(trace[: len(case.expected["trace"])], case.expected["trace"])


def test_gdpo_with_token_weighted_whitening(golden):
    case = build(golden, "gdpo")
    summed = case.objective.credit.summed(case.rewards, case.rollout.group_size)
    found = whitened(summed, case.rollout.chosen.sum(1).double())
    assert_same(found, case.expected["verl_token_weighted_whiten_advantage"])


def test_nested_match_is_the_prefix_reward(golden):
    setup = golden["token_setup"]
    assert_same(matched(numbers(setup["match"]), "prefix"), setup["prefix_match"])
    assert_same(matched(numbers(setup["match"]), "nested").sum(1), setup["rewards"]["prefix_025_05_1"])


def test_entropy_and_running_mean(golden):
    metrics, ema = golden["metrics"]["entropy"], golden["metrics"]["ema"]
    categories = torch.tensor(metrics["slates"])
    assert_same(category_entropy(categories, torch.float64), metrics["per_slate_nats"])
    case = build(golden, "sage_alg1_token_ratio")
    options = {"diversity": "slate", "ema_init": ema["H_bar_before"], "ema_decay": ema["decay"]}
    objective = OBJECTIVES.build("sage", options)
    experience = objective.prepare(case.rollout, case.rewards)
    assert_same(experience.extras["diversity"].mean(), ema["batch_mean_H"])
    (diversity,) = objective.state
    assert_same(diversity.mean, ema["H_bar_before"])
    objective.after_step()
    assert_same(diversity.mean, ema["H_bar_after"])
    objective.after_step()
    assert_same(diversity.mean, ema["H_bar_after"])
