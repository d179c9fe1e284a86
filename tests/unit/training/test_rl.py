import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import genrl.training.rl as rl
from genrl.batches import Completions, Experience, Requests, Rewards, Scores
from genrl.cli.flags import BUILT_IN
from genrl.errors import ConfigError, NonFiniteError
from genrl.objectives import ObjectiveOutput
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.runs.session import Session
from genrl.training.rl import RLModule
from genrl.training.skips import Skips
from tests.helpers import assert_same
from tests.runs import attach, changed, flat_gradient, flat_weights, learning_rates, rl_module, small_config, train

NO_KL = "objective.kl_coef=0"


class Judge:
    """A verifier that gives prepared outcomes, one rollout after the other."""

    uses_information = False

    def __init__(self, *outcomes: Tensor) -> None:
        self.outcomes = list(outcomes)
        self.rewards = {"judge": None}
        self.step_names = ()

    def __call__(self, rollout: Completions, requests: Requests) -> Rewards:
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        return Rewards({"judge": outcome}, {"judge": 1.0})


def make(session: Session, folder: Path, *overrides: str) -> RLModule:
    return rl_module(changed(session, folder, *overrides), folder)


def step_gradient(module: RLModule, steps: int = 1) -> list[Tensor]:
    """Gradients of the first optimiser steps without moving the weights, micro-batches added up."""
    attach(module, accumulate_grad_batches=1)
    module.trainer.accumulate_grad_batches = module.micro_batches
    gradients = []
    batches = iter(module.train_dataloader())
    for _ in range(steps):
        module.policy.zero_grad()
        for index in range(module.micro_batches):
            (module.training_step(next(batches), index) / module.micro_batches).backward()
        gradients.append(flat_gradient(module.policy))
    return gradients


@pytest.mark.parametrize("objective", ["grpo", "sapo", "sage", "bapo"])
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_gradient_of_the_step(session, tmp_path, objective, micro):
    options = [f"objective={objective}", NO_KL]
    whole = step_gradient(make(session, tmp_path, *options))[0]
    parts = make(session, tmp_path, *options, f"rollout.micro_batch={micro}")
    found = step_gradient(parts)[0]
    assert parts.micro_batches == {1: 8, 3: 3}[micro]
    assert float(whole.norm()) > 1e-3
    assert_same(found, whole)


def test_groups_without_any_advantage_are_left_out_of_the_forward_pass(session, tmp_path, monkeypatch):
    outcome = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    outcome[[1, 4, 5]] = 1.0
    scored = []

    def counted(policy: object, layout: object, prompts: Requests, batch: Completions, *options: object) -> object:
        scored.append(len(batch))
        return score(policy, layout, prompts, batch, *options)

    monkeypatch.setattr(rl, "score", counted)
    module = make(session, tmp_path, "objective=grpo", NO_KL)
    module.verifier = Judge(outcome.flatten())
    skipped = step_gradient(module)[0]
    assert scored == [5]
    monkeypatch.setattr(type(module.objective), "gradient_without_advantage", True)
    assert_same(step_gradient(module)[0], skipped)
    assert scored == [5, 8]


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "opd"])  # which needs a teacher
def test_every_objective_moves_the_policy(session, tmp_path, name):
    module = make(session, tmp_path, f"objective={name}")
    before = flat_weights(session.policy)
    logged = train(module, 1).callback_metrics
    moved = flat_weights(session.policy)
    assert bool(torch.isfinite(moved).all())
    assert not torch.equal(moved, before)
    assert float(logged["train/grad_norm"]) > 0


def test_a_penalty_acts_on_groups_without_advantage(session, tmp_path):
    module = make(session, tmp_path, "objective=grpo", "objective.entropy_coef=0.1", NO_KL)
    module.verifier = Judge(torch.ones(32))
    assert float(step_gradient(module)[0].norm()) > 1e-4


@pytest.mark.parametrize("micro", [0, 3])
def test_a_step_of_dead_groups_leaves_the_weights_as_they_are(session, tmp_path, micro):
    module = make(session, tmp_path, "objective=grpo", NO_KL, f"rollout.micro_batch={micro}", "rl.weight_decay=0")
    module.verifier = Judge(torch.ones(32))
    before = flat_weights(session.policy)
    trainer = train(module, 3)
    assert trainer.global_step == 3
    assert float(trainer.callback_metrics["objective/dead_groups"]) == 1.0
    assert torch.equal(flat_weights(session.policy), before)


def test_a_rollout_makes_as_many_steps_as_minibatches_and_epochs_say(session, tmp_path, monkeypatch):
    module = make(
        session, tmp_path, "objective=grpo", NO_KL, "rollout.minibatches=2", "rollout.epochs=2", "rl.max_steps=8"
    )
    drawn: list[int] = []
    original = module.experience
    monkeypatch.setattr(module, "experience", lambda index: drawn.append(index) or original(index))
    trainer = train(module, 8)
    assert module.updates == 4
    assert trainer.global_step == 8
    assert drawn == [0, 1]


def test_mini_batches_share_out_the_prompts_and_weigh_as_much_as_a_whole_rollout(session, tmp_path):
    module = attach(make(session, tmp_path, NO_KL, "rollout.minibatches=2", "rollout.epochs=2", "objective=grpo"))
    parts = module.experience(0)
    assert [len(part) for part in parts] == [4, 4, 4, 4]
    (one,) = attach(make(session, tmp_path, NO_KL, "objective=grpo")).experience(0)
    whole, everyone = one.experience, one.requests
    for first, second in (parts[:2], parts[2:]):
        seen = torch.cat([first.requests.tokens, second.requests.tokens])
        assert sorted(seen.tolist()) == sorted(everyone.tokens.tolist())
    assert parts[0].requests.tokens.tolist() != parts[2].requests.tokens.tolist()
    for part in parts:
        assert_same(part.experience.mass.sum(), torch.tensor(1.0))
        assert_same(part.experience.weights.sum(), whole.weights.sum())
    lookup = {tuple(row): number for number, row in enumerate(everyone.tokens.tolist())}
    prompts = [lookup[tuple(row)] for row in parts[1].requests.tokens.tolist()]
    assert_same(parts[1].experience.advantages, whole.groups(torch.tensor(prompts)).advantages)


def test_later_steps_of_a_rollout_see_the_policy_it_was_drawn_from(session, tmp_path):
    module = attach(make(session, tmp_path, "objective=grpo", NO_KL, "rollout.epochs=2"))
    parts = module.experience(0)
    (first, second), asked = (part.experience for part in parts), parts[1].requests
    with torch.no_grad():
        for value in session.policy.trainable().values():
            value.add_(0.05)
    old = second.completions.logps
    assert sorted(old.sum(1).tolist()) == sorted(first.completions.logps.sum(1).tolist())
    now = score(session.policy, session.layout, asked, second.completions).logps.detach()
    assert float((now - old).abs().max()) > 1e-3


def test_the_policy_starts_at_its_reference_and_leaves_it(session, tmp_path):
    module = make(session, tmp_path, "objective=grpo", "objective.kl_coef=0.1", "rl.learning_rate=0.01")
    values: list[float] = []

    class Notes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *arguments: object) -> None:
            values.append(float(trainer.callback_metrics["policy/kl"]))

    train(module, 4, Notes())
    assert values[0] < 1e-9
    assert values[-1] > 1e-5


def test_no_reference_is_kept_where_none_is_needed(session, tmp_path):
    assert attach(make(session, tmp_path, "objective=grpo", NO_KL)).reference is None
    reference = attach(make(session, tmp_path, "objective=grpo", "objective.kl_coef=0.1")).reference
    assert set(reference.weights) == set(session.policy.trainable())


@pytest.mark.filterwarnings("ignore:step 0")
def test_a_loss_that_is_no_number_leaves_the_weights_and_its_own_part_of_the_rollout(session, tmp_path, monkeypatch):
    module = make(session, tmp_path, "objective=grpo", "rollout.micro_batch=3")
    module.skips = Skips(2)
    original, passes = type(module.objective).loss, []

    def broken(self: object, scores: object, batch: object) -> ObjectiveOutput:
        output = original(self, scores, batch)
        passes.append(batch)
        return replace(output, loss=output.loss + (float("nan") if len(passes) % 3 == 2 else 0.0))

    monkeypatch.setattr(type(module.objective), "loss", broken)
    before = flat_weights(session.policy)
    with pytest.raises(NonFiniteError, match=r"step 1: the loss is nan\. 2 steps in a row"):
        train(module, 4)
    assert torch.equal(flat_weights(session.policy), before)
    saved = load_file(tmp_path / "non-finite-step1-rank0.safetensors")
    assert torch.equal(saved["experience.completions.tokens"], passes[4].completions.tokens)
    names = {"advantages", "weights", "completions.logps", "completions.ref_logps"}
    assert {"requests.tokens", *(f"experience.{name}" for name in names)} <= set(saved)
    losses = json.loads((tmp_path / "non-finite-step1-rank0.json").read_text())["losses"]
    assert [math.isfinite(value) for value in losses] == [True, False, True]


def test_there_is_no_dropout_in_rollouts_and_updates(tmp_path):
    session = Session.build(small_config(tmp_path, "model.dropout=0.5"))
    module = attach(make(session, tmp_path, "objective=grpo", NO_KL, "model.dropout=0.5"))
    session.policy.train()
    (part,) = module.experience(0)
    batch, prompts = part.experience, part.requests
    gradients = []
    for _ in range(2):
        session.policy.train()
        session.policy.zero_grad()
        module.training_step(part, 0).backward()
        gradients.append(flat_gradient(session.policy))
    assert_same(gradients[1], gradients[0])
    assert_same(
        score(session.policy.eval(), session.layout, prompts, batch.completions).logps.detach(), batch.completions.logps
    )


def test_cross_entropy_trains_on_the_targets_of_the_prompts(session, tmp_path):
    module = attach(make(session, tmp_path, "objective=ce"))
    (part,) = module.experience(0)
    batch, prompts = part.experience, part.requests
    targets = session.dataset.sequences.items[module.prompts.at(0)]
    assert batch.completions.items[:, 0].tolist() == targets.tolist()
    assert batch.completions.group_size == 1
    scores = score(session.policy, session.layout, prompts, batch.completions)
    chosen = batch.completions.chosen
    assert_same(module.objective.loss(scores, batch).loss, -scores.logps[chosen].mean())


def log_likelihood(policy: Policy, codes: Tensor, text: list[int], item: int) -> Tensor:
    """Of an item's codes behind a text, one plain pass for each, over the codes that some item has behind the same."""
    total = torch.zeros(())
    for level, code in enumerate(codes[item].tolist()):
        before = codes[item, :level]
        legal = codes[(codes[:, :level] == before).all(1), level].unique()
        tokens = [*text, *(before + torch.tensor(policy.first_ids[:level])).tolist()]
        logits = policy.base(torch.tensor([tokens])).logits[0, -1, policy.first_ids[level] + legal]
        total = total + logits.log_softmax(0)[legal == code].sum()
    return total


@pytest.mark.parametrize("on_budget", ["close", "fail"])
def test_cross_entropy_of_a_policy_that_thinks_is_that_of_the_target_behind_each_own_thought(
    session, tmp_path, on_budget
):
    budget = 40 if on_budget == "fail" else 3
    base = ["layout=blocked", f"layout.budget={budget}", f"layout.on_budget={on_budget}", NO_KL, "rollout.prompts=4"]
    thinking = Session.build(small_config(tmp_path, *base, "objective=ce"))
    module = attach(make(thinking, tmp_path, *base, "objective=ce"))
    (part,) = module.experience(0)
    drawn = part.experience.completions
    logged = module.journal.close()
    named = drawn.items[:, 0] >= 0
    targets = thinking.dataset.sequences.items[module.prompts.at(0)]
    assert drawn.group_size == 4
    assert bool(named.any())
    assert bool(named.all()) is (on_budget == "close")
    assert_same(logged["rollout/format_failures"], 1 - float(named.float().mean()), 1e-6)
    assert_same(logged["train/valid_rate"], float(named.float().mean()), 1e-6)
    (rl_part,) = attach(make(thinking, tmp_path, *base, "objective=grpo")).experience(0)
    own = rl_part.experience.completions
    text = drawn.written & ~drawn.item_mask
    assert drawn.tokens[text].equal(own.tokens[own.written & ~own.item_mask])
    words = int((own.chosen & ~own.item_mask).sum())
    assert_same(logged["rollout/length"], (words + int(drawn.chosen.sum())) / 16, 1e-5)

    policy, codes = thinking.policy, thinking.layout.codes
    total = torch.zeros(())
    for row in named.nonzero()[:, 0].tolist():
        prompt = part.requests.tokens[row // 4][part.requests.mask[row // 4]].tolist()
        total = total + log_likelihood(
            policy, codes, [*prompt, *drawn.tokens[row][text[row]].tolist()], int(targets[row // 4])
        )
    policy.zero_grad()
    wanted = -total / int(drawn.chosen.sum())
    wanted.backward()
    gradient = flat_gradient(policy)
    policy.zero_grad()
    loss = module.training_step(part, 0)
    loss.backward()
    assert_same(loss, wanted, 1e-5)
    assert_same(flat_gradient(policy), gradient, 1e-5)
    assert_same(
        step_gradient(make(thinking, tmp_path, *base, "objective=ce", "rollout.micro_batch=1"))[0], gradient, 1e-5
    )


def test_what_a_rollout_earned_is_logged_by_reward_and_step(session, tmp_path):
    module = make(session, tmp_path, "objective=sapo")
    trainer = train(module, 1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    experience, rewards, _ = module.sampled
    drawn = experience.completions
    assert_same(logged["train/reward"], float(rewards.outcome.mean()), 1e-6)
    assert_same(logged["train/reward/exact_match"], float(rewards.components["exact_match"].mean()), 1e-6)
    for step, value in enumerate(rewards.steps.mean(0).tolist()):
        assert_same(logged[f"train/match/step{step + 1}"], value, 1e-6)
    assert_same(logged["rollout/length"], float(drawn.chosen.sum() / 32), 1e-6)
    groups = drawn.items.view(8, 4).tolist()
    assert_same(logged["rollout/distinct"], sum(len(set(group)) for group in groups) / 32, 1e-6)
    assert_same(logged["policy/entropy"], float(drawn.entropy.sum() / drawn.chosen.sum()), 1e-6)
    assert logged["train/valid_rate"] == 1.0
    cold = session.dataset.catalog.cold[drawn.items].float().mean()
    assert_same(logged["rollout/cold_share"], float(cold), 1e-6)


@pytest.mark.parametrize("micro", [0, 3])
def test_the_gradient_of_each_step_is_logged_over_all_micro_batches(session, tmp_path, micro):
    module = make(session, tmp_path, "objective=sapo", f"rollout.micro_batch={micro}")
    (part,) = attach(make(session, tmp_path, "objective=sapo")).experience(0)
    whole, prompts = part.experience, part.requests
    scores = score(session.policy, session.layout, prompts, whole.completions)
    (gradient,) = torch.autograd.grad(module.objective.loss(scores, whole).loss, scores.logps)
    logged = train(module, 1).callback_metrics
    for step in range(whole.completions.num_steps):
        places = whole.completions.step_ids == step
        assert_same(logged[f"train/grad_norm/step{step + 1}"], gradient[places].norm())
        sizes = whole.advantages[places & whole.completions.chosen].abs()
        assert_same(logged[f"objective/advantage_abs_step{step + 1}"], sizes.mean())


def test_sampling_depends_on_the_seed_and_the_rollout_alone(session, tmp_path):
    def items(index: int, *overrides: str) -> list[int]:
        return (
            attach(make(session, tmp_path, *overrides))
            .experience(index)[0]
            .experience.completions.items.flatten()
            .tolist()
        )

    torch.manual_seed(1)
    first = items(1)
    torch.manual_seed(2)
    assert items(1) == first
    assert items(2) != first
    assert items(1, "seed=1") != first


def test_the_learning_rate_warms_up_and_stays(session, tmp_path):
    module = attach(make(session, tmp_path, "rl.warmup_steps=4"))
    assert_same(learning_rates(module, 6), [0.00025, 0.0005, 0.00075, 0.001, 0.001, 0.001], 1e-9)


def test_training_raises_the_chance_of_what_is_rewarded(session, tmp_path):
    module = make(
        session, tmp_path, "objective=grpo", NO_KL, "rl.learning_rate=0.02", "rl.max_steps=15", "rl.validate_every=15"
    )

    class Likes(Judge):
        def __call__(self, rollout: Completions, requests: Requests) -> Rewards:
            outcome = (rollout.codes[:, 0] == 3).float()
            return Rewards({"judge": outcome}, {"judge": 1.0})

    module.verifier = Likes()
    before = module.verifier(attach(module).experience(0)[0].experience.completions, None).outcome.mean()
    train(module, 15)
    after = module.verifier(module.experience(99)[0].experience.completions, None).outcome.mean()
    assert float(after) > float(before) + 0.3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rollouts_are_drawn_in_the_precision_of_the_update(session, tmp_path, monkeypatch, precision):
    module = make(session, tmp_path, "objective=bapo")  # scores before each step, too
    seen = []
    forward = type(session.policy).forward

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(*arguments, **options)

    monkeypatch.setattr(type(session.policy), "forward", watched)
    train(module, 2, precision=precision)
    assert set(seen) == {precision == "bf16-mixed"}
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session whose policy has weights in bfloat16, far from uniform; tests leave it as it is."""
    options = ("model.layers=2", "model.hidden=32", "trainer.precision=bf16-true")
    session = Session.build(small_config(tmp_path_factory.mktemp("rough"), *options))
    with torch.no_grad():
        for value in session.policy.trainable().values():
            assert value.dtype == torch.bfloat16
            if value.dim() > 1:
                value.mul_(4.0)
    return session


def first_losses(module: RLModule, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients by log-probabilities and ratios that the objective sees in the first passes, without moving weights."""
    seen: list[Tensor] = []
    weights: list[Tensor] = []
    original = module.objective.loss

    def loss(scores: Scores, batch: Experience) -> ObjectiveOutput:
        seen.append((scores.logps - batch.completions.logps).detach()[batch.completions.chosen])
        weights.append(batch.weights.detach())
        return original(scores, batch)

    module.objective.loss = loss
    attach(module)
    for step, part in zip(range(steps), module.train_dataloader(), strict=False):
        module.trainer.global_step = step
        module.training_step(part, 0)
    return seen, weights


@pytest.mark.parametrize("objective", ["grpo", "bapo"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_ratios_of_the_first_update_are_exactly_one_in_bfloat16(rough, tmp_path, objective, minibatches):
    options = (f"objective={objective}", NO_KL, f"rollout.minibatches={minibatches}")
    module = make(rough, tmp_path, *options)
    differences, _ = first_losses(module, minibatches)
    assert float(differences[0].abs().max()) == 0
    gap = module.journal.close()["policy/sampling_gap_max"]
    assert gap > 1e-4  # bfloat16 has 8 bits
    assert all(float(later.abs().max()) < gap for later in differences)  # they have one base, which scoring gave


def test_sampling_and_scoring_agree_in_float32(session, tmp_path):
    module = make(session, tmp_path, "objective=grpo", NO_KL, "rollout.minibatches=2")
    differences, _ = first_losses(module, 2)
    assert float(differences[0].abs().max()) == 0
    assert float(differences[1].abs().max()) < 1e-6
    logged = module.journal.close()
    assert logged["policy/sampling_gap"] <= logged["policy/sampling_gap_max"] < 1e-6


@pytest.mark.parametrize("minibatches", [1, 2])
def test_truncated_importance_weights_enter_once(rough, tmp_path, minibatches):
    options = ("objective=grpo", NO_KL, f"rollout.minibatches={minibatches}")
    _, plain = first_losses(make(rough, tmp_path, *options), minibatches)
    bounds = {bound: ("rollout.correction=truncated", f"rollout.correction_bound={bound}") for bound in (0.5, 2)}
    for bound, more in bounds.items():
        _, weights = first_losses(make(rough, tmp_path, *options, *more), minibatches)
        pairs = zip(weights, plain, strict=True)
        factor = torch.cat([(found / before)[before > 0] for found, before in pairs])
        if bound == 0.5:  # all ratios are above it
            assert_same(factor, torch.full_like(factor, 0.5))
        else:
            assert float((factor - 1).abs().max()) > 1e-4
            assert 0.5 < float(factor.min()) <= float(factor.max()) < 2


def test_targets_were_not_sampled_and_have_no_gap(session, tmp_path):
    module = make(session, tmp_path, "objective=ce")
    first_losses(module, 1)
    assert not any("sampling_gap" in tag for tag in module.journal.close())


def test_activation_checkpointing_recomputes_layers_in_the_update_only(session, tmp_path):
    module = make(session, tmp_path, "objective=grpo", NO_KL)
    plain = step_gradient(module)[0]
    passes = []
    layer = session.policy.decoder.layers[0].mlp
    hook = layer.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    session.policy.checkpoint_activations()
    assert_same(step_gradient(module)[0], plain)
    hook.remove()
    for module in session.policy.decoder.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    assert passes.count(True) == 1  # in the backward pass; the forward pass before it kept nothing
    assert passes.count(False) >= 3


def test_what_thinking_tells_is_asked_of_as_many_completions_as_are_needed(session, tmp_path):
    base = ["layout=blocked", "layout.budget=3", "objective=grpo", NO_KL]
    thinking = Session.build(small_config(tmp_path, *base))

    def drawn(*options: str) -> tuple[Completions, dict[str, float], Rewards]:
        module = attach(make(thinking, tmp_path, *base, *options))
        (part,) = module.experience(0)
        return part.experience.completions, module.journal.close(), module.sampled[1]

    one, logged, _ = drawn()
    asked = ~one.information.isnan().all(1).view(8, 4)
    assert asked.sum(1).tolist() == [1] * 8
    assert_same(logged["rollout/information"], float(one.information.view(8, 4, -1)[:, 0].sum(1).mean()), 1e-5)
    every, logged, rewards = drawn("rewards.information.weight=0.5", "rewards.information.clip=100")
    assert_same(rewards.values["information"], every.information)
    assert_same(every.information.view(8, 4, -1)[:, 0], one.information.view(8, 4, -1)[:, 0], 1e-4)
    assert_same(logged["rollout/information"], logged["train/reward/information"], 1e-5)
    none, logged, _ = drawn("rollout.information=0")
    assert none.information is None
    assert "rollout/information" not in logged


def test_thoughts_between_codes_are_not_judged_and_a_reward_for_them_is_refused(session, tmp_path):
    base = ["layout=blocked", "layout.budget=3", "layout.order=interleaved", "objective=grpo", NO_KL]
    thinking = Session.build(small_config(tmp_path, *base))
    (part,) = attach(make(thinking, tmp_path, *base)).experience(0)
    assert part.experience.completions.information is None
    with pytest.raises(ConfigError, match=r"rewards.information.*layout.order=tail"):
        make(thinking, tmp_path, *base, "rewards.information.weight=1")
