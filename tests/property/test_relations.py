"""What one objective has to do with another (section 17 of the methods reference)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Scores
from genrl.objectives import OBJECTIVES, Objective, SequenceMean, StepMean
from genrl.objectives.gbpo import bounded_ratio
from genrl.ops import segment_sum
from tests.helpers import assert_same
from tests.property.rollouts import Sample, assert_outcome, layouts, sample


def build(name: str, **options: object) -> Objective:
    return OBJECTIVES.build(name, {"kl_coef": 0.0, **options})


def gradient(objective: Objective, batch: Sample) -> Tensor:
    return batch.outcome(objective)[1]


@layouts
def test_on_policy_the_clipped_objectives_are_one(layout):
    batch = sample(layout).on_policy()
    by_row = gradient(build("grpo"), batch)
    by_token = gradient(build("grpo", reduction="token"), batch)
    assert_same(gradient(build("ecpo"), batch), by_row)
    assert_same(gradient(build("dapo", denominator="all"), batch), by_token)
    assert (gradient(build("gbpo"), batch) - by_row).abs().max() > 1e-4


@layouts
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "sapo", "gdpo", "ecpo", "bapo", "sage"])
def test_on_policy_gradient_is_weight_times_advantage(layout, name):
    options = {"ratio_level": "token"} if name == "sage" else {}
    batch, objective = sample(layout).on_policy(), build(name, **options)
    experience = batch.experience(objective)
    assert_same(batch.run(objective, experience)[1], -experience.weights * experience.advantages)


@layouts
def test_gspo_token_is_gspo_where_the_advantage_is_one_per_completion(layout):
    batch = sample(layout)
    options = {"clip_low": 0.05, "clip_high": 0.05}
    by_token = build("gspo", level="sequence_token", **options)
    assert_outcome(batch.outcome(by_token), batch.outcome(build("gspo", **options)))


@layouts
def test_equal_rewards_at_one_step_give_it_no_gradient(layout):
    batch = sample(layout)
    steps = batch.rewards.steps.clone()
    steps[:, 1] = 0.7
    slope = gradient(build("sapo"), batch.with_rewards({"level_match": steps}))
    assert (slope[batch.rollout.step_ids == 1] == 0).all()
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("seed", range(5))
def test_ecpo_differs_from_grpo_only_on_bad_tokens_far_above_one(seed):
    batch = sample("blocked", seed=seed, spread=1.0)
    advantages = batch.experience(build("grpo")).advantages
    ratios = (batch.logps - batch.rollout.logps).exp()
    apart = (gradient(build("ecpo"), batch) - gradient(build("grpo"), batch)).abs() > 1e-12
    bad = (advantages < 0) & (ratios > 1.3) & batch.rollout.chosen
    assert bad.any()
    assert torch.equal(apart, bad)


@layouts
@pytest.mark.parametrize("guard", ["add", "clamp"])
@pytest.mark.parametrize("match", ["per_level", "prefix", "nested"])
@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_with_one_step_sapo_is_grpo_on_the_same_reward(layout, guard, match, weight):
    """Same guard, format and KL; the mean over steps is then that over completions."""
    batch = sample(layout)
    closed = None if batch.rollout.closed is None else batch.rollout.closed[:, :1]
    ids, codes = torch.zeros_like(batch.rollout.step_ids), batch.rollout.codes[:, :1]
    rollout = replace(batch.rollout, step_ids=ids, num_steps=1, codes=codes, closed=closed)
    values = {"level_match": batch.rewards.outcome[:, None], "format": batch.rewards.values["level_match"][:, 1:2]}
    single = replace(batch, rollout=rollout).with_rewards(values, format=weight)
    assert_same(StepMean()(rollout), SequenceMean()(rollout))
    expected = single.outcome(build("grpo", guard=guard, kl_coef=0.05))
    assert expected[1].any()
    assert_outcome(single.outcome(build("sapo", guard=guard, kl_coef=0.05, match=match)), expected)


@layouts
def test_gdpo_with_one_reward_is_a_multiple_of_grpo(layout):
    batch = sample(layout)
    single = {"novelty": batch.rewards.values["novelty"]}
    plain = batch.with_rewards(single).experience(build("grpo", eps=1e-4)).advantages
    decoupled = batch.with_rewards(single, novelty=2.5).experience(build("gdpo")).advantages
    factors = (decoupled / plain)[plain != 0]
    assert_same(factors, factors[:1].expand_as(factors))
    assert factors[0] > 0


@pytest.mark.parametrize("form", ["clipped", "gradient"])
@pytest.mark.parametrize("level", ["token", "item"])
@layouts
def test_sage_pulls_all_tokens_of_a_completion_equally(form, level, layout):
    batch = sample(layout)
    slope = gradient(build("sage", form=form, ratio_level=level), batch)
    for row, mask in zip(slope, batch.rollout.chosen, strict=True):
        assert_same(row[mask], row[mask][:1].expand(int(mask.sum())))


@layouts
def test_sage_without_its_own_ideas_is_the_clipped_sequence_ratio(layout):
    batch = sample(layout)
    options = {"boost": 0.05, "clip": 0.05, "beta": 0.0, "floor": "clip_lambda", "floor_tolerance": 0.0}
    sage, gspo = build("sage", ratio_level="token", **options), build("gspo", clip_low=0.05, clip_high=0.05)
    experience = batch.experience(sage)
    assert_outcome(batch.run(sage, experience), batch.run(gspo, experience))


def test_a_diverse_bad_completion_at_rest_keeps_its_gradient():
    """The floor is exactly 1 there, and a ratio of 1 is 1 only up to rounding."""
    batch = sample("slate").on_policy()
    exact = gradient(build("sage", floor="clip_lambda"), batch)
    noise = (torch.rand(batch.logps.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 1e-6
    noisy = replace(batch, logps=batch.logps + noise.double())
    assert_same(gradient(build("sage"), noisy), exact, tolerance=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_gbpo_coefficient_is_bounded(seed):
    draw = torch.Generator().manual_seed(seed)
    new, old = (torch.rand(2000, generator=draw, dtype=torch.float64).log() * 4 for _ in range(2))
    advantages = torch.randn(2000, generator=draw, dtype=torch.float64)
    leaf = new.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bounded_ratio(leaf, old, advantages).sum(), leaf)
    ratios, odds = (new - old).exp(), new.exp() / -torch.expm1(new)
    expected = torch.where(advantages >= 0, ratios.clamp(max=1), torch.minimum(ratios, odds))
    assert (slope > 0).all()
    assert_same(slope / expected, torch.ones_like(slope))


def test_gbpo_at_certainty_is_finite():
    leaf = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    values = bounded_ratio(leaf, torch.tensor([0.0, -3.0], dtype=torch.float64), -torch.ones(2, dtype=torch.float64))
    assert torch.isfinite(values).all()


@layouts
def test_items_of_gbpo_share_the_completion(layout):
    """The row's value is the mean over its items, whatever their number."""
    batch, objective = sample(layout), build("gbpo", level="item")
    experience = batch.experience(objective)
    values, _ = objective.surrogate(Scores(batch.logps), experience)
    ratios, advantages = objective.surrogate.ratios(Scores(batch.logps), experience)
    owners = batch.rollout.item_ids.masked_fill(~batch.rollout.chosen, -1)
    present = segment_sum(torch.ones_like(batch.logps), owners, ratios.shape[1]) > 0
    for row in range(values.shape[0]):
        if present[row].any():
            assert_same(values[row, 0], (ratios * advantages)[row][present[row]].mean())


@layouts
def test_ablations_of_sapo(layout):
    batch = sample(layout)
    shaping = batch.rewards.step_shaping
    shaping = torch.zeros_like(batch.rewards.steps) if shaping is None else shaping
    exact = batch.rewards.components["exact_match"]
    outcome = batch.with_rewards({"sum": exact + shaping.mean(1)})
    assert_same(gradient(build("sapo", ablation="outcome"), batch), gradient(build("grpo"), outcome))
    summed = batch.with_rewards({"sum": (batch.rewards.steps + shaping).sum(1)})
    experience = batch.experience(build("sapo", ablation="no_step_advantage"))
    plain = summed.experience(build("grpo")).advantages
    inside = batch.rollout.chosen & (batch.rollout.step_ids >= 0)
    assert_same(experience.advantages[inside], plain[inside])
    copied = batch.experience(build("sapo", ablation="no_match_reward", guard="add")).advantages
    for k in range(batch.rollout.num_steps):
        at_step = batch.with_rewards({"sum": exact + shaping[:, k]}).experience(build("grpo")).advantages
        here = inside & (batch.rollout.step_ids == k)
        assert_same(copied[here], at_step[here])
