"""Advantages step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genrl.objectives import GroupNorm, OutcomeCredit, Setting, StepCredit
from genrl.objectives.credit import normalized
from genrl.objectives.sapo import ShapedOutcome, matched
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_every_step_is_normalised_by_itself() -> None:
    steps = torch.tensor([[1.0, 10.0], [0.0, 30.0]], dtype=torch.float64)
    found = normalized(steps, 2, GroupNorm(eps=0.0))
    assert_same(found, [[0.5**0.5, -(0.5**0.5)], [-(0.5**0.5), 0.5**0.5]])


thinking = pytest.mark.parametrize("layout", ["blocked", "interleaved"])


@thinking
def test_step_credit_reaches_the_tokens_of_its_step(layout: str) -> None:
    batch = sample(layout)
    advantages = StepCredit()(batch.rollout, batch.rewards)
    expected = normalized(batch.rewards.steps + batch.rewards.step_shaping, 4, GroupNorm(guard="clamp"))
    for k in range(batch.rollout.num_steps):
        places = batch.rollout.step_ids == k
        assert_same(advantages[places], expected[:, k : k + 1].expand(places.shape)[places])
    assert (advantages[batch.rollout.step_ids < 0] == 0).all()


@thinking
def test_think_only_leaves_item_tokens_without_credit(layout: str) -> None:
    batch = sample(layout)
    advantages = StepCredit(scope="think_only")(batch.rollout, batch.rewards)
    everywhere = StepCredit()(batch.rollout, batch.rewards)
    assert (advantages[batch.rollout.item_mask] == 0).all()
    assert_same(advantages[~batch.rollout.item_mask], everywhere[~batch.rollout.item_mask])


def test_prefix_counts_a_level_only_after_all_before_it() -> None:
    steps = torch.tensor([[0.5, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.0]], dtype=torch.float64)
    assert_same(matched(steps, "prefix"), [[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    assert_same(matched(steps, "nested").sum(1), [0.5 / 8, 0.5 / 2])
    assert_same(matched(steps, "per_level"), steps)


def test_shaping_is_added_to_the_match_after_it_is_gated() -> None:
    batch = sample("blocked", prompts=1)
    steps = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.float64)
    shaping = torch.tensor([[0.2, 0.2], [0, 0.2], [0.2, 0], [0, 0]], dtype=torch.float64)
    batch = batch.with_rewards({"level_match": steps, "format": shaping})
    raw = StepCredit(GroupNorm("none"), "prefix")(batch.rollout, batch.rewards)
    wanted = torch.tensor([[0.2, 0.2], [1, 1.2], [1.2, 0], [0, 0]], dtype=torch.float64)
    assert_same(raw, wanted.gather(1, batch.rollout.step_ids.clamp(min=0)) * (batch.rollout.step_ids >= 0))


def test_equal_sums_in_another_order_of_steps_are_a_dead_group() -> None:
    draw, steps = torch.Generator().manual_seed(0), 6
    match = torch.stack([torch.tensor([1.0, 1, 0, 0, 0, 0])[torch.randperm(steps, generator=draw)] for _ in range(200)])
    ended = torch.stack([torch.tensor([0, 1.0, 1, 1, 1, 1])[torch.randperm(steps, generator=draw)] for _ in range(200)])
    assert len((match + 0.1 * ended).sum(1).unique()) > 1  # in float32
    batch = sample("sid", prompts=1, group_size=200)
    places = torch.zeros(200, steps, dtype=torch.int64)
    rollout = replace(batch.rollout, num_steps=steps, codes=places)
    values = {"level_match": match, "hit": match[:, 0] * 0, "format": ended}
    rewards = batch.with_rewards(values, format=0.1).rewards
    assert not StepCredit(GroupNorm(), per_step=False)(rollout, rewards).any()
    assert not ShapedOutcome(GroupNorm(), "hit")(rollout, rewards).any()


def test_a_shaped_outcome_adds_the_mean_over_steps() -> None:
    batch = sample("blocked")
    exact = batch.rewards.components["exact_match"]
    summed = batch.with_rewards({"sum": exact + batch.rewards.step_shaping.mean(1)})
    assert_same(
        ShapedOutcome(GroupNorm(), "exact_match")(batch.rollout, batch.rewards),
        OutcomeCredit()(batch.rollout, summed.rewards),
    )
    bare = batch.with_rewards({"exact_match": exact})
    plain = OutcomeCredit(component="exact_match")(batch.rollout, batch.rewards)
    assert_same(ShapedOutcome(GroupNorm(), "exact_match")(batch.rollout, bare.rewards), plain)
    alone = Setting(("exact_match",), step_rewards=True, group_size=1)
    assert len(list(ShapedOutcome(GroupNorm(), "hit").missing(alone))) == 2
