"""Advantages from rewards, one per completion."""

import pytest
import torch

from genrl.objectives import GroupNorm
from genrl.objectives.credit import normalized
from tests.helpers import assert_same
from tests.property.rollouts import sample


@pytest.mark.parametrize("guard", ["add", "clamp"])
def test_equal_rewards_get_exactly_zero_even_when_their_mean_is_rounded(guard):
    rewards = torch.full((7,), 0.1)
    assert (rewards.mean() - rewards[0]).abs() >= 0
    assert (normalized(rewards, 7, GroupNorm(guard=guard)) == 0).all()


@pytest.mark.parametrize("guard", ["add", "clamp"])
@pytest.mark.parametrize("normalize", ["std", "mean"])
def test_rewards_equal_up_to_rounding_are_equal(guard, normalize):
    """One unit in the last place of 32 is 4e-6, four times the eps that guards the deviation."""
    norm = GroupNorm(guard=guard, normalize=normalize)
    steps = torch.tensor([0, 1, 0, 1]) * 32 * torch.finfo(torch.float32).eps
    assert (normalized(33.0 + steps, 4, norm) == 0).all()
    assert (normalized(-33.0 - steps.double(), 4, norm) == 0).all()
    assert (normalized(0.01 + steps, 4, norm) != 0).all()
    assert (normalized(33.0 + 1000 * steps, 4, norm) != 0).all()


def test_clamp_and_add_differ_by_eps():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    added = normalized(rewards, 2, GroupNorm(eps=0.5))
    clamped = normalized(rewards, 2, GroupNorm(eps=0.5, guard="clamp"))
    assert_same(added, [0.5 / (0.5**0.5 + 0.5), -0.5 / (0.5**0.5 + 0.5)])
    assert_same(clamped, [0.5 / 0.5**0.5, -0.5 / 0.5**0.5])


def test_raw_rewards():
    batch = sample("sid")
    for norm in (GroupNorm(normalize="none"), GroupNorm(singleton="raw")):
        values = norm(batch.rewards.outcome, 1)
        assert_same(values, batch.rewards.outcome)
