"""Advantages from several rewards."""

from __future__ import annotations

import pytest
import torch

from genrl.objectives import DecoupledCredit, GroupNorm
from genrl.objectives.credit import whitened
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_a_reward_with_small_numbers_counts_as_much_when_decoupled() -> None:
    """What summing first would drown."""
    batch = sample("sid")
    small = {**batch.rewards.values, "novelty": batch.rewards.values["novelty"] * 1e-3}
    whole, scaled = (
        DecoupledCredit(GroupNorm(eps=0.0))(batch.rollout, batch.with_rewards(values).rewards)
        for values in (batch.rewards.values, small)
    )
    assert_same(scaled, whole)


def test_weight_zero_is_not_optimised() -> None:
    batch = sample("sid")
    values = dict(batch.rewards.values)
    zero = DecoupledCredit()(batch.rollout, batch.with_rewards(values, novelty=0.0).rewards)
    del values["novelty"]
    left_out = DecoupledCredit()(batch.rollout, batch.with_rewards(values).rewards)
    assert_same(zero, left_out)


def test_a_dead_group_stays_at_exactly_zero_after_whitening() -> None:
    batch = sample("sid")
    assert (DecoupledCredit()(batch.rollout, batch.rewards)[8:12] == 0).all()


@pytest.mark.parametrize("whiten", ["sequence", "none"])
def test_mean_and_deviation_over_the_batch(whiten: str) -> None:
    batch = sample("blocked", prompts=6)
    rollout = batch.rollout
    credit = DecoupledCredit(GroupNorm(eps=0.0), whiten)
    summed = credit.summed(batch.rewards, rollout.group_size)
    advantages = credit(rollout, batch.rewards)[:, 1]  # the token after the forced mark
    expected = summed / summed.std() if whiten == "sequence" else summed
    some = rollout.chosen[:, 1]
    assert_same(advantages[some], expected[some])
    assert_same(summed.mean(), 0.0)


def test_whitening_by_tokens_is_whitening_of_the_tokens() -> None:
    values = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    counts = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    tokens = values.repeat_interleave(counts.to(torch.int64))
    expected = (values - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    assert_same(whitened(values, counts), expected)
