"""An objective of one's own needs two methods."""

from __future__ import annotations

import pytest
import torch

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives import OBJECTIVES, Objective, ObjectiveOutput, Setting
from tests.helpers import assert_same
from tests.property.rollouts import sample


class Reinforce(Objective):
    """Reward times log-probability, without baseline."""

    def prepare(self, rollout: Completions, rewards: Rewards) -> Experience:
        weights = rollout.chosen / rollout.chosen.sum().to(rollout.logps.dtype)
        return Experience(rollout, rewards.outcome[:, None] * rollout.chosen, weights, weights.sum(1))

    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        return ObjectiveOutput(-(batch.weights * batch.advantages * scores.logps).sum())


def test_two_methods_are_enough() -> None:
    objective, batch = Reinforce(), sample("sid")
    experience = objective.prepare(batch.rollout, batch.rewards)
    _, gradient = batch.run(objective, experience)
    assert_same(gradient, -batch.rewards.outcome[:, None] * batch.rollout.chosen / batch.rollout.chosen.sum())


def test_what_it_has_without_asking() -> None:
    objective, batch = Reinforce(), sample("sid")
    experience = objective.prepare(batch.rollout, batch.rewards)
    assert not any((objective.uses_reference, objective.uses_scores, objective.trains_on_targets))
    objective.check(Setting((), step_rewards=False, group_size=1), "mine")
    assert objective.dynamic_sampling == 0
    assert objective.gradient_without_advantage  # unless it says otherwise, no group may be skipped
    assert objective.before_step(Scores(batch.logps), experience) is experience
    objective.after_step()
    assert not objective.state_dict()


def test_both_methods_are_asked_for() -> None:
    class Half(Reinforce):
        loss = Objective.loss

    with pytest.raises(TypeError, match=r"abstract method '?loss"):
        Half()


def test_stats_may_be_left_out() -> None:
    assert ObjectiveOutput(torch.zeros(())).stats == {}
    assert all(isinstance(OBJECTIVES.build(name), Objective) for name in OBJECTIVES.names())
