"""Rewards for the form of a completion."""

from dataclasses import replace

import pytest
import torch

from genrl.batches import Targets
from genrl.errors import LayoutError
from genrl.rewards import REWARDS
from tests.helpers import assert_same
from tests.unit.rewards.test_base import context, rollout

TARGETS = Targets(torch.tensor([[1], [1], [2], [2]]))


def judged(closed, items):
    thinking = replace(rollout(items), closed=torch.tensor(closed))
    return REWARDS.build("format")(thinking, TARGETS, context())


def test_a_step_is_paid_if_the_policy_ended_its_block_and_the_completion_names_an_item():
    closed = [[True, True], [True, False], [False, True], [False, False]]
    assert_same(judged(closed, (0, 1, 2, 0)), torch.tensor(closed).float())
    assert_same(judged(closed, (-1, 1, -1, 0)), torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 0]]))


def test_without_thinking_there_is_nothing_to_judge():
    with pytest.raises(LayoutError, match=r"rewards\.format=null, or choose layout=blocked"):
        REWARDS.build("format")(rollout(), TARGETS, context())
