"""The reward for what thinking tells of the target."""

from dataclasses import replace

import pytest
import torch

from genrl.batches import Targets
from genrl.errors import LayoutError
from genrl.rewards import REWARDS, build_verifier
from tests.helpers import assert_same
from tests.unit.rewards.test_base import TARGETS as REQUESTS
from tests.unit.rewards.test_base import context, rollout

TARGETS = Targets(torch.tensor([[1], [1], [2], [2]]))


def test_a_step_earns_its_nats_within_bounds_and_a_failed_thought_the_least():
    lost = float("-inf")
    told = torch.tensor([[0.5, -0.25], [3.0, -9.0], [lost, lost], [0.0, 1.5]])
    thinking = replace(rollout(), information=told)
    wanted = torch.tensor([[0.5, -0.25], [1.0, -1.0], [-1.0, -1.0], [0.0, 1.0]])
    assert_same(REWARDS.build("information", {"clip": 1.0})(thinking, TARGETS, context()), wanted)
    verifier = build_verifier({"information": {"clip": 1.0, "weight": 2.0}}, context(), thinking=True)
    assert verifier.uses_information
    rewards = verifier(thinking, REQUESTS)
    assert_same(rewards.outcome, 2 * wanted.sum(1))
    assert_same(rewards.step_shaping, 2 * wanted)
    assert rewards.steps is None
    assert not build_verifier({"exact_match": {}}, context()).uses_information


def test_without_whole_thoughts_there_is_nothing_to_judge():
    with pytest.raises(LayoutError, match=r"rewards\.information=null, or choose layout=blocked"):
        REWARDS.build("information")(rollout(), TARGETS, context())
