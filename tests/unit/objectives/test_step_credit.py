"""Advantages step by step."""

from __future__ import annotations

import torch

from genrl.objectives import GroupNorm, StepCredit
from genrl.objectives.credit import normalized
from genrl.objectives.step_credit import matched
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_every_step_is_normalised_by_itself() -> None:
    steps = torch.tensor([[1.0, 10.0], [0.0, 30.0]], dtype=torch.float64)
    found = normalized(steps, 2, GroupNorm(eps=0.0))
    assert_same(found, [[0.5**0.5, -(0.5**0.5)], [-(0.5**0.5), 0.5**0.5]])


def test_step_credit_reaches_the_tokens_of_its_step() -> None:
    batch = sample("blocked")
    advantages = StepCredit()(batch.rollout, batch.rewards)
    expected = normalized(batch.rewards.steps, 4, GroupNorm(guard="clamp"))
    for k in range(batch.rollout.num_steps):
        places = batch.rollout.step_ids == k
        assert_same(advantages[places], expected[:, k : k + 1].expand(places.shape)[places])
    assert (advantages[batch.rollout.step_ids < 0] == 0).all()


def test_think_only_leaves_item_tokens_without_credit() -> None:
    batch = sample("blocked")
    advantages = StepCredit(scope="think_only")(batch.rollout, batch.rewards)
    everywhere = StepCredit()(batch.rollout, batch.rewards)
    assert (advantages[batch.rollout.item_mask] == 0).all()
    assert_same(advantages[~batch.rollout.item_mask], everywhere[~batch.rollout.item_mask])


def test_prefix_counts_a_level_only_after_all_before_it() -> None:
    steps = torch.tensor([[0.5, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.0]], dtype=torch.float64)
    assert_same(matched(steps, "prefix"), [[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    assert_same(matched(steps, "nested").sum(1), [0.5 / 8, 0.5 / 2])
    assert_same(matched(steps, "per_level"), steps)
