"""The control without reward."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from genrl.objectives import OBJECTIVES
from genrl.policy.rollout import given_text
from tests.helpers import assert_same
from tests.property.rollouts import assert_outcome, sample

MICRO = [(torch.tensor([0]), slice(4)), (torch.tensor([1, 2, 3]), slice(4, 16))]
"""Prompts of each micro-batch, and the rows of their completions."""


def test_cross_entropy_is_the_mean_negative_log_likelihood():
    batch = sample("slate", group_size=1)
    objective = OBJECTIVES.build("ce")
    assert objective.trains_on_targets
    loss, gradient = batch.outcome(objective)
    assert_same(loss, -batch.logps[batch.rollout.chosen].mean())
    assert_same(gradient, -batch.rollout.chosen.double() / batch.rollout.chosen.sum())


def test_rewards_do_not_matter():
    batch, objective = sample("sid"), OBJECTIVES.build("ce", {"reduction": "sequence", "kl_coef": 0.1})
    loss, gradient = batch.outcome(objective)
    other_loss, other_gradient = batch.shifted(5.0, scale=-2.0).outcome(objective)
    assert_same(other_loss, loss)
    assert_same(other_gradient, gradient)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_behind_thinking_it_is_that_of_the_item_alone(layout, reduction):
    batch, objective = sample(layout), OBJECTIVES.build("ce", {"reduction": reduction})
    given = replace(batch, rollout=given_text(batch.rollout))
    counts = (batch.rollout.chosen & batch.rollout.item_mask).double()
    assert counts.sum(1).unique().tolist() == [0, 1, 2]  # no choice or no item, one code forced, none
    if reduction == "sequence":
        counts = counts / counts.sum(1, keepdim=True).clamp(min=1)
    wanted = counts / counts.sum()
    experience = given.experience(objective)
    loss, gradient = given.run(objective, experience)
    assert loss.dtype == torch.float64
    assert_same(loss, -(wanted * batch.logps).sum())
    assert_same(gradient, -wanted)
    words = batch.rollout.chosen & ~batch.rollout.item_mask
    assert words.any()
    assert not gradient[words].any()
    other = replace(given, logps=torch.where(words, batch.logps - 3, batch.logps))
    assert other.run(objective, experience)[0] == loss
    assert_outcome(given.padded(3).outcome(objective), (loss, functional.pad(gradient, (0, 3))))
    parts = [given.run(objective, experience.groups(group), rows) for group, rows in MICRO]
    assert_same(sum(part for part, _ in parts), loss)
    assert_same(torch.cat([part for _, part in parts]), gradient)


def test_penalties_hold_the_item_alone_to_the_reference():
    batch, objective = sample("blocked"), OBJECTIVES.build("ce", {"kl_coef": 0.5, "entropy_coef": 0.1})
    given = replace(batch, rollout=given_text(batch.rollout))
    _, gradient = given.outcome(objective)
    item = given.rollout.chosen
    assert gradient[item].all()
    assert not gradient[~item].any()
