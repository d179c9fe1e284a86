"""The relatives of grpo: their options, and advantages from several rewards."""

from __future__ import annotations

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import (
    OBJECTIVES,
    CappedRatio,
    ClippedRatio,
    ConstantLength,
    Credit,
    DecoupledCredit,
    DetachedRatio,
    FixedBounds,
    GroupNorm,
    OutcomeCredit,
    Reduction,
    SequenceMean,
    Surrogate,
    TokenMean,
)
from genrl.objectives.credit import whitened
from tests.helpers import assert_same
from tests.property.rollouts import sample

Options = dict[str, object]
CLIP = ClippedRatio("token", FixedBounds(0.2, 0.2))
PLAIN = OutcomeCredit(GroupNorm())
NARROW = OutcomeCredit(GroupNorm(ddof=0, eps=0.1))
SPREAD = {"ddof": 0, "eps": 0.1}


@pytest.mark.parametrize(
    ("name", "options", "credit", "surrogate", "reduction"),
    [
        (
            "dr_grpo",
            {},
            OutcomeCredit(GroupNorm("mean")),
            CLIP,
            ConstantLength(4.0),
        ),
        (
            "dr_grpo",
            {"length": 9, "clip_low": 0.1, "clip_high": 0.3},
            OutcomeCredit(GroupNorm("mean")),
            ClippedRatio("token", FixedBounds(0.1, 0.3)),
            ConstantLength(9.0),
        ),
        ("dapo", {}, PLAIN, ClippedRatio("token", FixedBounds(0.2, 0.28)), TokenMean()),
        ("dapo", SPREAD, NARROW, ClippedRatio("token", FixedBounds(0.2, 0.28)), TokenMean()),
        ("gspo", {}, PLAIN, ClippedRatio("sequence", FixedBounds(3e-4, 4e-4)), SequenceMean()),
        (
            "gspo",
            {"level": "sequence_token", "clip_low": 0.1, "clip_high": 0.2, **SPREAD},
            NARROW,
            ClippedRatio("sequence_token", FixedBounds(0.1, 0.2)),
            SequenceMean(),
        ),
        (
            "gdpo",
            {},
            DecoupledCredit(GroupNorm(eps=1e-4)),
            CLIP,
            SequenceMean(),
        ),
        (
            "gdpo",
            {"whiten": "none", "reduction": "token", **SPREAD},
            DecoupledCredit(GroupNorm(ddof=0, eps=0.1), "none"),
            CLIP,
            TokenMean(),
        ),
        ("ecpo", {}, PLAIN, CappedRatio("token", 0.2, 0.1), SequenceMean()),
        (
            "ecpo",
            {"level": "sequence", "clip": 0.3, "delta": 0.2, **SPREAD},
            NARROW,
            CappedRatio("product", 0.3, 0.2),
            SequenceMean(),
        ),
        ("cispo", {}, PLAIN, DetachedRatio(0.0, 5.0), TokenMean()),
        ("cispo", {"weight_min": 0.5, "weight_max": 2.0, **SPREAD}, NARROW, DetachedRatio(0.5, 2.0), TokenMean()),
    ],
)
def test_pieces(name: str, options: Options, credit: Credit, surrogate: Surrogate, reduction: Reduction) -> None:
    objective = OBJECTIVES.build(name, options)
    assert objective.credit == credit
    assert objective.surrogate == surrogate
    assert objective.reduction == reduction


def test_dapo_resamples() -> None:
    objective = OBJECTIVES.build("dapo", {"dynamic_sampling": 7, "denominator": "all"})
    assert (objective.dynamic_sampling, objective.drop_dead) == (7, "all")
    assert (OBJECTIVES.build("dapo").dynamic_sampling, OBJECTIVES.build("dapo").drop_dead) == (4, "kept")
    assert OBJECTIVES.build("grpo").dynamic_sampling == 0


def test_cispo_never_loses_a_gradient() -> None:
    batch, objective = sample("blocked", spread=4.0), OBJECTIVES.build("cispo", {"weight_min": 0.8, "weight_max": 1.2})
    experience = batch.experience(objective)
    _, gradient = batch.run(objective, experience)
    assert (gradient[experience.advantages != 0] != 0).all()
    told = objective.loss(Scores(batch.logps), experience).stats
    assert told["clip_fraction"] > 0


def test_ecpo_coefficient_is_capped() -> None:
    batch, objective = sample("blocked", spread=4.0), OBJECTIVES.build("ecpo")
    experience = batch.experience(objective)
    _, gradient = batch.run(objective, experience)
    some = experience.advantages != 0
    coefficient = (gradient / (-experience.weights * experience.advantages))[some]
    assert_same(coefficient.max(), 1.3)


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
