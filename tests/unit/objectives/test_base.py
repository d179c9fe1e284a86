"""An objective of two methods, one of four pieces, and what is missing said before a model is loaded."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.errors import ConfigError
from genrl.objectives import (
    OBJECTIVES,
    ClippedRatio,
    FixedBounds,
    KLPenalty,
    LogLikelihood,
    Objective,
    ObjectiveOutput,
    OutcomeCredit,
    PolicyObjective,
    SequenceMean,
    Setting,
    TokenMean,
    live_prompts,
    renormalized,
)
from tests.helpers import assert_same
from tests.property.rollouts import sample


class Reinforce(Objective):
    """Reward times log-probability, without baseline."""

    def prepare(self, rollout: Completions, rewards: Rewards) -> Experience:
        weights = rollout.chosen / rollout.chosen.sum().to(rollout.logps.dtype)
        return Experience(rollout, rewards.outcome[:, None] * rollout.chosen, weights, weights.sum(1))

    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        return ObjectiveOutput(-(batch.weights * batch.advantages * scores.logps).sum())


def test_two_methods_are_enough():
    objective, batch = Reinforce(), sample("sid")
    experience = objective.prepare(batch.rollout, batch.rewards)
    _, gradient = batch.run(objective, experience)
    assert_same(gradient, -batch.rewards.outcome[:, None] * batch.rollout.chosen / batch.rollout.chosen.sum())
    assert not any((objective.uses_reference, objective.uses_scores, objective.trains_on_targets))
    objective.check(Setting((), step_rewards=False, group_size=1), "mine")
    assert objective.dynamic_sampling == 0
    assert objective.gradient_without_advantage  # unless it says otherwise, no group may be skipped
    assert objective.before_step(Scores(batch.logps), experience) is experience
    objective.after_step()
    assert not objective.state_dict()
    assert ObjectiveOutput(torch.zeros(())).stats == {}


def test_both_methods_are_asked_for():
    class Half(Reinforce):
        loss = Objective.loss

    with pytest.raises(TypeError, match=r"abstract method '?loss"):
        Half()


def test_the_algorithm_can_be_read_off():
    lines = repr(OBJECTIVES.build("sapo")).splitlines()
    assert len(lines) <= 7
    assert [line.split("=")[0].strip() for line in lines[1:-1]] == ["credit", "surrogate", "reduction", "penalty"]
    assert "StepCredit" in lines[1]
    assert "StepMean" in lines[3]


def test_what_it_uses_and_lacks_is_that_of_the_pieces():
    clip = ClippedRatio("token", FixedBounds(0.2, 0.2))
    plain = PolicyObjective(OutcomeCredit(), clip, TokenMean())
    alone = Setting(("hit",), step_rewards=False, group_size=1)
    assert len(list(plain.missing(alone))) == 1
    assert not list(plain.missing(replace(alone, group_size=2)))
    assert not plain.uses_reference
    assert PolicyObjective(OutcomeCredit(), clip, TokenMean(), [KLPenalty(1.0)]).uses_reference


def test_loss_is_the_weighted_sum():
    batch = sample("blocked")
    objective = PolicyObjective(OutcomeCredit(), LogLikelihood(), SequenceMean())
    experience = batch.experience(objective)
    loss, gradient = batch.run(objective, experience)
    assert_same(loss, -(experience.weights * experience.advantages * batch.logps).sum())
    assert_same(gradient, -experience.weights * experience.advantages)
    assert_same(experience.weights.sum(), 1.0)


def test_a_piece_may_hold_a_module_however_deep():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def after_step(self) -> None:
            self.count += 1

    @dataclass(frozen=True)
    class Inner:
        counter: Counter

    @dataclass(frozen=True)
    class Counting(LogLikelihood):
        inner: Inner | None = None

    objective = PolicyObjective(OutcomeCredit(), Counting(Inner(Counter())), TokenMean())
    assert [key for key, _ in objective.named_buffers()] == ["state.0.count"]
    objective.after_step()
    assert objective.state_dict()["state.0.count"] == 1


@pytest.mark.parametrize(("drop", "total"), [("kept", "live"), ("all", "all"), ("", "all")])
def test_dead_groups_may_be_dropped_with_or_without_their_share(drop, total):
    batch = sample("blocked")
    clip = ClippedRatio("token", FixedBounds(0.2, 0.2))
    objective = PolicyObjective(OutcomeCredit(), clip, TokenMean(), drop_dead=drop)
    experience = batch.experience(objective)
    live = live_prompts(experience)
    assert live.tolist() == [True, True, False, True]
    rows = live.repeat_interleave(4)
    tokens = batch.rollout.chosen[rows].sum() if total == "live" else batch.rollout.chosen.sum()
    assert_same(experience.weights[rows], batch.rollout.chosen[rows] / tokens.double())
    assert (experience.weights[~rows] == 0).all() == bool(drop)


def test_nothing_to_learn_from_is_no_division_by_zero():
    batch = sample("sid")
    experience = batch.experience(OBJECTIVES.build("grpo"))
    empty = replace(experience, mass=torch.zeros_like(experience.mass), weights=torch.zeros_like(experience.weights))
    assert_same(renormalized(empty).weights, empty.weights)


def test_dead_share_is_told():
    batch = sample("sid")
    objective = OBJECTIVES.build("dapo")
    experience = batch.experience(objective)
    for prompts, share in ((slice(0, 2), 0.0), (slice(2, 3), 1.0), (slice(0, 4), 0.25)):
        part = batch.prompts(prompts)
        told = objective.loss(Scores(part.logps), experience.groups(prompts)).stats
        assert_same(told["dead_groups"], share)
    assert objective.dynamic_sampling == 4


COMPARING = ("grpo", "sapo", "sage", "dapo", "gdpo")
FINE = Setting(("exact_match", "level_match"), step_rewards=True, group_size=4)


def message(name: str, options: dict[str, object] | None = None, **given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        OBJECTIVES.build(name, options).check(replace(FINE, **given), name)
    return str(caught.value)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_nothing_missing(name):
    OBJECTIVES.build(name).check(replace(FINE, items=1, categories=True, thinking=False), name)


def test_sapo_without_step_reward():
    assert message("sapo", step_rewards=False, rewards=("exact_match",)) == (
        "objective 'sapo' needs a match per step; none of rewards [exact_match] gives one. "
        "Add e.g. rewards.level_match.weight=1"
    )


@pytest.mark.parametrize(
    ("name", "options", "given", "text"),
    [
        *((name, {}, {"group_size": 1}, "rollout.group_size is 1. Set it to 2 or more") for name in COMPARING),
        ("sage", {}, {"rewards": ()}, "at least one reward by name"),
        (
            "sapo",
            {"ablation": "outcome", "exact_reward": "hit"},
            {},
            "needs the reward 'hit'; rewards are [exact_match, level_match]. Add rewards.hit.weight=1",
        ),
        ("sage", {"diversity": "slate"}, {"items": 1}, "objective.diversity=group"),
        ("sage", {}, {"categories": False}, "data.columns.category"),
        ("sapo", {"scope": "think_only"}, {"thinking": False}, "layout=blocked"),
        ("ce", {}, {"thinking": True, "items": 3}, "this layout writes 3. Choose layout=blocked, or layout=sid"),
    ],
)
def test_what_is_missing_and_its_remedy(name, options, given, text):
    assert text in message(name, options, **given)


@pytest.mark.parametrize(
    ("name", "options"), [("ce", {}), ("gbpo", {"advantage": "sign"}), ("grpo", {"singleton": "raw"})]
)
def test_groups_of_one_where_nothing_is_compared(name, options):
    OBJECTIVES.build(name, options).check(replace(FINE, group_size=1), name)


def test_all_problems_at_once():
    assert len(message("sapo", step_rewards=False, group_size=1).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "options", "absent", "text"),
    [
        ("grpo", {}, "ref_logps", "set kl_coef=0"),
        ("sage", {}, "categories", "set diversity=policy"),
        ("sage", {"diversity": "policy"}, "entropy", "set diversity=group"),
        ("grpo", {}, "group", r"rollout\.group_size is 1"),
    ],
)
def test_missing_in_the_rollout(name, options, absent, text):
    batch = sample("slate")
    change = {"group_size": 1} if absent == "group" else {absent: None}
    batch = replace(batch, rollout=replace(batch.rollout, **change))
    with pytest.raises(ConfigError, match=text):
        batch.outcome(OBJECTIVES.build(name, options))


@pytest.mark.parametrize(
    ("name", "options", "rewards", "text"),
    [
        ("sapo", {}, "exact_match", r"need a match per step; none of rewards \[exact_match\] gives one"),
        ("sapo", {"ablation": "outcome", "exact_reward": "style"}, "exact_match", r"rewards.style.weight=1"),
        ("gdpo", {}, "novelty", "by name and weight; Rewards.weights has none other than 0"),
        ("sage", {"diversity": "slate"}, "exact_match", "Set diversity=group"),
    ],
)
def test_missing_in_the_rewards_or_the_layout(name, options, rewards, text):
    batch = sample("sid")
    batch = batch.with_rewards({rewards: batch.rewards.values[rewards]}, novelty=0.0)
    with pytest.raises(ConfigError, match=text):
        OBJECTIVES.build(name, options).prepare(batch.rollout, batch.rewards)


def test_missing_in_the_scores():
    batch, objective = sample("sid"), OBJECTIVES.build("dapo", {"entropy_coef": 0.1})
    with pytest.raises(ConfigError, match="set entropy_coef=0"):
        objective.loss(Scores(batch.logps), batch.experience(objective))
