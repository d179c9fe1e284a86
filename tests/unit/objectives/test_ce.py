"""The control without reward."""

from __future__ import annotations

from genrl.objectives import OBJECTIVES
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_cross_entropy_is_the_mean_negative_log_likelihood() -> None:
    batch = sample("slate", group_size=1)
    objective = OBJECTIVES.build("ce")
    assert objective.trains_on_targets
    loss, gradient = batch.outcome(objective)
    assert_same(loss, -batch.logps[batch.rollout.chosen].mean())
    assert_same(gradient, -batch.rollout.chosen.double() / batch.rollout.chosen.sum())


def test_rewards_do_not_matter() -> None:
    batch, objective = sample("sid"), OBJECTIVES.build("ce", {"reduction": "sequence", "kl_coef": 0.1})
    loss, gradient = batch.outcome(objective)
    other_loss, other_gradient = batch.shifted(5.0, scale=-2.0).outcome(objective)
    assert_same(other_loss, loss)
    assert_same(other_gradient, gradient)
