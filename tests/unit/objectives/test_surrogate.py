"""Ratios, clips and the statistics they report."""

from __future__ import annotations

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import OBJECTIVES
from genrl.objectives.surrogate import clipped_surrogate, item_count, log_ratios, ratio
from tests.helpers import assert_same
from tests.property.rollouts import sample


@pytest.mark.parametrize(
    ("advantage", "slopes"), [(1.0, [1.0, 1.0, 1.0, 1.0, 0.0]), (-1.0, [0.0, -1.0, -1.0, -1.0, -1.0])]
)
def test_the_gradient_is_whole_on_the_bounds_and_none_outside(advantage: float, slopes: list[float]) -> None:
    ratios = torch.tensor([0.79, 0.8, 1.0, 1.2, 1.21], dtype=torch.float64, requires_grad=True)
    values, flat = clipped_surrogate(ratios, torch.full_like(ratios, advantage).detach(), 0.8, 1.2)
    (slope,) = torch.autograd.grad(values.sum(), ratios)
    assert_same(slope, slopes)
    assert torch.equal(flat, slope == 0)
    plain = torch.minimum(ratios * advantage, ratios.clamp(0.8, 1.2) * advantage)
    assert_same(values, plain)


def test_bounds_may_be_tensors() -> None:
    ratios = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    advantages = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    values, _ = clipped_surrogate(ratios, advantages, torch.tensor([[0.75]]).double(), torch.tensor([[1.25]]).double())
    assert_same(values, [[-0.75, 1.25]])


def test_dual_clip_bounds_bad_tokens() -> None:
    ratios = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    values, flat = clipped_surrogate(ratios, advantages, 0.8, 1.2, dual_clip=3.0)
    assert_same(values, [-2.0, -3.0, 1.2])
    assert flat.tolist() == [False, True, True]


def test_tolerance_keeps_what_is_on_the_bound_up_to_rounding() -> None:
    ratios = torch.tensor([1 - 5e-5, 1 - 5e-4], dtype=torch.float64)
    values, flat = clipped_surrogate(ratios, -torch.ones_like(ratios), 1.0, 1.2, tolerance=1e-4)
    assert flat.tolist() == [False, True]
    assert_same(values, [-(1 - 5e-5), -1.0])


def test_levels_of_the_ratio() -> None:
    batch = sample("slate")
    rollout, logs = batch.rollout, log_ratios(Scores(batch.logps), batch.rollout)
    tokens, total = rollout.chosen.sum(1).clamp(min=1), logs.sum(1)
    owners = [set(row[mask & (row >= 0)].tolist()) for row, mask in zip(rollout.item_ids, rollout.chosen, strict=True)]
    items = torch.tensor([max(1, len(owner)) for owner in owners])
    assert_same(item_count(rollout)[:, 0], items.double())
    assert_same(ratio(logs, rollout, "token"), logs.exp())
    assert_same(ratio(logs, rollout, "sequence")[:, 0], (total / tokens).exp())
    assert_same(ratio(logs, rollout, "item")[:, 0], (total / items).exp())
    assert_same(ratio(logs, rollout, "product")[:, 0], total.exp())
    assert_same(ratio(logs, rollout, "sequence_token"), (total / tokens).exp()[:, None].expand_as(logs))


def test_stats_are_means_over_chosen_tokens() -> None:
    batch = sample("blocked", spread=1.0)
    objective = OBJECTIVES.build("grpo")
    experience = batch.experience(objective)
    stats = objective.loss(Scores(batch.logps, batch.entropy), experience).stats
    mask = batch.rollout.chosen
    ratios = (batch.logps - batch.rollout.logps).exp()
    flat = ((experience.advantages > 0) & (ratios > 1.2)) | ((experience.advantages < 0) & (ratios < 0.8))
    difference = batch.rollout.ref_logps - batch.logps
    assert_same(stats["ratio_mean"], ratios[mask].mean())
    assert_same(stats["ratio_max"], ratios[mask].max())
    assert_same(stats["clip_fraction"], flat[mask].double().mean())
    assert_same(stats["kl"], (difference.exp() - difference - 1)[mask].mean())
    assert_same(stats["entropy"], batch.entropy[mask].mean())
    assert_same(stats["dead_groups"], 0.25)
    assert_same(stats["advantage_abs"], experience.advantages[mask].abs().mean())


def test_only_what_was_computed_is_told() -> None:
    batch = sample("sid")
    objective = OBJECTIVES.build("grpo", {"kl_coef": 0.0})
    stats = objective.loss(Scores(batch.logps), batch.experience(objective)).stats
    assert set(stats) == {"advantage_abs", "ratio_mean", "ratio_max", "clip_fraction", "dead_groups"}
    sapo = OBJECTIVES.build("sapo")
    told = sapo.loss(Scores(batch.logps), batch.experience(sapo)).stats
    assert set(told) == {*stats, "kl"}
    sage = OBJECTIVES.build("sage")
    assert {"mean_diversity", "mean_lambda"} <= set(sage.loss(Scores(batch.logps), batch.experience(sage)).stats)
