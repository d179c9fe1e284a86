"""Advantages from rewards, one per completion."""

import pytest
import torch

from genrl.batches import Rewards
from genrl.objectives import DecoupledCredit, GroupNorm
from genrl.objectives.credit import normalized
from tests.helpers import assert_same
from tests.property.rollouts import sample, single_tokens


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


def compared(rows: list[tuple[float, float]], apart: bool) -> list[float]:
    """Advantages of one group of completions with two rewards each, before the batch is looked at."""
    first, second = (torch.tensor(values, dtype=torch.float64) for values in zip(*rows, strict=True))
    rewards = Rewards({"stay": first, "click": second}, {"stay": 1.0, "click": 1.0})
    zeros = torch.zeros(len(rows), 1, dtype=torch.int64)
    drawn = single_tokens(zeros, zeros.double(), len(rows))
    return DecoupledCredit(GroupNorm(eps=0.0), "none", apart)(drawn, rewards)[:, 0].tolist()


def test_two_slates_with_one_sum_are_told_apart_by_decoupling():
    """A stays, B clicks, and clicks are rarer."""
    group = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]
    stays, clicks, _, _ = compared(group, apart=False)
    assert stays == clicks
    stays, clicks, _, _ = compared(group, apart=True)
    assert_same([stays, clicks], [0.5 / 3**-0.5 - 0.5, 1.5 - 0.5 / 3**-0.5])


def test_decoupled_advantages_do_not_maximise_the_weighted_sum():
    """X = (.51, 1), Y = (.52, 0): the sum picks X, and X earns three times as much; decoupling reinforces Y most."""
    group = [(0.51, 1.0), (0.52, 0.0), (0.515, 0.0)]
    summed, apart = (compared(group, apart=way) for way in (False, True))
    assert summed.index(max(summed)) == 0
    assert apart.index(max(apart)) == 1
    root = 3**0.5
    assert_same(apart, [2 / root - 1, 1 - 1 / root, -1 / root])
