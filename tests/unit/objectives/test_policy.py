"""The objective of four pieces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from genrl.batches import Scores
from genrl.objectives import (
    OBJECTIVES,
    ClippedRatio,
    FixedBounds,
    KLPenalty,
    LogLikelihood,
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


def test_the_algorithm_can_be_read_off() -> None:
    lines = repr(OBJECTIVES.build("sapo")).splitlines()
    assert len(lines) <= 7
    assert [line.split("=")[0].strip() for line in lines[1:-1]] == ["credit", "surrogate", "reduction", "penalty"]
    assert "StepCredit" in lines[1]
    assert "StepMean" in lines[3]


def test_what_it_uses_and_lacks_is_that_of_the_pieces() -> None:
    clip = ClippedRatio("token", FixedBounds(0.2, 0.2))
    plain = PolicyObjective(OutcomeCredit(), clip, TokenMean())
    alone = Setting(("hit",), step_rewards=False, group_size=1)
    assert len(list(plain.missing(alone))) == 1
    assert not list(plain.missing(replace(alone, group_size=2)))
    assert not plain.uses_reference
    assert PolicyObjective(OutcomeCredit(), clip, TokenMean(), [KLPenalty(1.0)]).uses_reference


def test_loss_is_the_weighted_sum() -> None:
    batch = sample("blocked")
    objective = PolicyObjective(OutcomeCredit(), LogLikelihood(), SequenceMean())
    experience = batch.experience(objective)
    loss, gradient = batch.run(objective, experience)
    assert_same(loss, -(experience.weights * experience.advantages * batch.logps).sum())
    assert_same(gradient, -experience.weights * experience.advantages)
    assert_same(experience.weights.sum(), 1.0)


def test_a_piece_may_hold_a_module_however_deep() -> None:
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
def test_dead_groups_may_be_dropped_with_or_without_their_share(drop: str, total: str) -> None:
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


def test_nothing_to_learn_from_is_no_division_by_zero() -> None:
    batch = sample("sid")
    experience = batch.experience(OBJECTIVES.build("grpo"))
    empty = replace(experience, mass=torch.zeros_like(experience.mass), weights=torch.zeros_like(experience.weights))
    assert_same(renormalized(empty).weights, empty.weights)


def test_dead_share_is_told() -> None:
    batch = sample("sid")
    objective = OBJECTIVES.build("dapo")
    experience = batch.experience(objective)
    for prompts, share in ((slice(0, 2), 0.0), (slice(2, 3), 1.0), (slice(0, 4), 0.25)):
        part = batch.prompts(prompts)
        told = objective.loss(Scores(part.logps), experience.groups(prompts)).stats
        assert_same(told["dead_groups"], share)
    assert objective.dynamic_sampling == 4
