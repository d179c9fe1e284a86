"""Ratios, clips, penalties, weights of tokens, and the statistics they report."""

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import (
    OBJECTIVES,
    ConstantLength,
    SequenceMean,
    StepMean,
    TokenMean,
)
from genrl.objectives.terms import clipped_surrogate
from tests.helpers import assert_same
from tests.property.rollouts import LAYOUTS, sample


@pytest.mark.parametrize(
    ("advantage", "slopes"), [(1.0, [1.0, 1.0, 1.0, 1.0, 0.0]), (-1.0, [0.0, -1.0, -1.0, -1.0, -1.0])]
)
def test_the_gradient_is_whole_on_the_bounds_and_none_outside(advantage, slopes):
    ratios = torch.tensor([0.79, 0.8, 1.0, 1.2, 1.21], dtype=torch.float64, requires_grad=True)
    values, flat = clipped_surrogate(ratios, torch.full_like(ratios, advantage).detach(), 0.8, 1.2)
    (slope,) = torch.autograd.grad(values.sum(), ratios)
    assert_same(slope, slopes)
    assert torch.equal(flat, slope == 0)
    plain = torch.minimum(ratios * advantage, ratios.clamp(0.8, 1.2) * advantage)
    assert_same(values, plain)


def test_dual_clip_bounds_bad_tokens():
    ratios = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    values, flat = clipped_surrogate(ratios, advantages, 0.8, 1.2, dual_clip=3.0)
    assert_same(values, [-2.0, -3.0, 1.2])
    assert flat.tolist() == [False, True, True]


def test_tolerance_keeps_what_is_on_the_bound_up_to_rounding():
    ratios = torch.tensor([1 - 5e-5, 1 - 5e-4], dtype=torch.float64)
    values, flat = clipped_surrogate(ratios, -torch.ones_like(ratios), 1.0, 1.2, tolerance=1e-4)
    assert flat.tolist() == [False, True]
    assert_same(values, [-(1 - 5e-5), -1.0])


def test_stats_are_means_over_chosen_tokens():
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


def test_only_what_was_computed_is_told():
    batch = sample("sid")
    objective = OBJECTIVES.build("grpo", {"kl_coef": 0.0})
    stats = objective.loss(Scores(batch.logps), batch.experience(objective)).stats
    assert set(stats) == {"advantage_abs", "ratio_mean", "ratio_max", "clip_fraction", "dead_groups"}
    sapo = OBJECTIVES.build("sapo")
    told = sapo.loss(Scores(batch.logps), batch.experience(sapo)).stats
    assert set(told) == {*stats, "kl"}
    sage = OBJECTIVES.build("sage")
    assert {"mean_diversity", "mean_lambda"} <= set(sage.loss(Scores(batch.logps), batch.experience(sage)).stats)


def test_the_bonus_has_a_gradient():
    batch = sample("blocked")
    objective = OBJECTIVES.build("grpo", {"entropy_coef": 0.5, "kl_coef": 0.0})
    experience = batch.experience(objective)
    entropy = batch.entropy.clone().requires_grad_()
    loss = objective.loss(Scores(batch.logps, entropy), experience).loss
    (slope,) = torch.autograd.grad(loss, entropy)
    assert_same(slope, -0.5 * experience.weights)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_kl_and_entropy_weights_are_options(name):
    batch = sample("blocked")
    objective = OBJECTIVES.build(name, {"kl_coef": 0.5, "entropy_coef": 0.25})
    assert objective.uses_reference
    assert objective.gradient_without_advantage
    plain = OBJECTIVES.build(name, {"kl_coef": 0.0})
    assert not plain.uses_reference
    assert not plain.gradient_without_advantage
    experience = batch.experience(plain)
    difference = batch.run(objective, experience)[0] - batch.run(plain, experience)[0]
    kl = torch.expm1(batch.rollout.ref_logps - batch.logps) - (batch.rollout.ref_logps - batch.logps)
    assert_same(difference, (experience.weights * (0.5 * kl - 0.25 * batch.entropy)).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums(layout):
    rollout = sample(layout).rollout
    chosen = rollout.chosen.sum(1)
    in_steps = (rollout.chosen & (rollout.step_ids >= 0)).any(1).double()
    wanted = {TokenMean(): chosen, SequenceMean(): chosen > 0, StepMean(): in_steps, ConstantLength(8.0): chosen / 8.0}
    for reduction, sums in wanted.items():
        weights = reduction(rollout)
        assert_same(weights.sum(1), sums.double())
        assert weights.dtype == rollout.logps.dtype
        assert (weights[~rollout.chosen] == 0).all()


def test_constant_length_divides_by_rows_whatever_their_length():
    rollout = sample("blocked").rollout
    assert_same(ConstantLength(8.0).mass(ConstantLength(8.0)(rollout)), torch.ones(16, dtype=torch.float64))
    assert_same(SequenceMean().mass(SequenceMean()(rollout)).sum(), 15.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_share_a_row_and_the_chosen_tokens_of_a_step_share_it(layout):
    rollout = sample(layout).rollout
    assert (rollout.item_mask & ~rollout.chosen)[2:].any()  # a forced code leaves its share to the others of its row
    weights = StepMean()(rollout).tolist()
    for row, (steps, mask) in enumerate(zip(rollout.step_ids.tolist(), rollout.chosen.tolist(), strict=True)):
        owners = [step if free else -1 for step, free in zip(steps, mask, strict=True)]
        steps_taken = len(set(owners) - {-1})
        assert_same(weights[row], [1 / steps_taken / owners.count(step) if step >= 0 else 0.0 for step in owners])
