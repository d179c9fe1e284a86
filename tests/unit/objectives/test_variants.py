"""The pieces that options choose, the relatives of grpo, and advantages from several rewards."""

import pytest

from genrl.batches import Scores
from genrl.objectives import (
    OBJECTIVES,
    AdaptiveBounds,
    CappedRatio,
    ClippedRatio,
    ConstantLength,
    DecoupledCredit,
    DetachedRatio,
    EntropyBonus,
    FixedBounds,
    GradientBounded,
    GroupNorm,
    KLPenalty,
    OutcomeCredit,
    Range,
    SequenceMean,
    SignCredit,
    StepCredit,
    StepMean,
    TokenMean,
)
from genrl.objectives.ce import ConstantCredit, TargetLikelihood
from genrl.objectives.grpo import GRPOConfig
from genrl.objectives.sapo import ShapedOutcome
from tests.helpers import assert_same
from tests.property.rollouts import sample

Options = dict[str, object] | GRPOConfig
ROWS, TOKENS, STEPS = SequenceMean(), TokenMean(), StepMean()
CLIP, LOWER = ClippedRatio("token", FixedBounds(0.2, 0.2)), ClippedRatio("token", FixedBounds(0.1, 0.3))
HIGHER, DUAL = ClippedRatio("token", FixedBounds(0.2, 0.28)), ClippedRatio("token", FixedBounds(0.2, 0.2), 3.0)
SEQUENCE = ClippedRatio("sequence", FixedBounds(3e-4, 4e-4))
BOTH = ClippedRatio("sequence_token", FixedBounds(0.1, 0.2))
PLAIN, CENTERED = OutcomeCredit(GroupNorm("std", 1, 1e-6, "add", "zero")), OutcomeCredit(GroupNorm("mean"))
CLAMPED = GroupNorm(guard="clamp")
SPREAD, NARROW = {"ddof": 0, "eps": 0.1}, OutcomeCredit(GroupNorm(ddof=0, eps=0.1))
RAW = {"normalize": "mean", "ddof": 0, "eps": 0.5, "guard": "clamp", "singleton": "raw"}
SEARCH = {"variant": "paper", "target": 0.4, "low": [0.6, 0.9], "high": [1.2, 3.0], "step_low": 0.02, "count": "active"}
CODE = AdaptiveBounds(Range(0.6, 0.8, 0.05), Range(1.2, 2.0, 0.05), 1.0, "code", "surrogate")
PAPER = AdaptiveBounds(Range(0.6, 0.9, 0.02), Range(1.2, 3.0, 0.05), 0.4, "paper", "active")
SIGNS = {"level": "item", "advantage": "sign", "positive_quantile": 0.5, "negative_reward": -1.0, "kl_coef": 0.2}
SCALES = {"weight_min": 0.5, "weight_max": 2.0}
KL = (KLPenalty(0.001),)
PIECES = [
    ("grpo", {}, PLAIN, CLIP, ROWS, KL),
    ("grpo", {**RAW, "reduction": "token"}, OutcomeCredit(GroupNorm("mean", 0, 0.5, "clamp", "raw")), CLIP, TOKENS, KL),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.3, "kl_coef": 0.0}, PLAIN, LOWER, ROWS, ()),
    ("grpo", GRPOConfig(dual_clip=3.0, kl_coef=0.0, entropy_coef=-0.2), PLAIN, DUAL, ROWS, (EntropyBonus(-0.2),)),
    ("grpo", {"kl_coef": 0.1, "entropy_coef": 0.2}, PLAIN, CLIP, ROWS, (KLPenalty(0.1), EntropyBonus(0.2))),
    ("dr_grpo", {}, CENTERED, CLIP, ConstantLength(4.0), ()),
    ("dr_grpo", {"length": 9, "clip_low": 0.1, "clip_high": 0.3}, CENTERED, LOWER, ConstantLength(9.0), ()),
    ("dapo", {}, PLAIN, HIGHER, TOKENS, ()),
    ("dapo", SPREAD, NARROW, HIGHER, TOKENS, ()),
    ("gspo", {}, PLAIN, SEQUENCE, ROWS, ()),
    ("gspo", {"level": "sequence_token", "clip_low": 0.1, "clip_high": 0.2, **SPREAD}, NARROW, BOTH, ROWS, ()),
    ("gdpo", {}, DecoupledCredit(GroupNorm(eps=1e-4)), CLIP, ROWS, KL),
    ("gdpo", {"whiten": "none", **SPREAD}, DecoupledCredit(GroupNorm(ddof=0, eps=0.1), "none"), CLIP, ROWS, KL),
    ("gdpo", {"reduction": "token"}, DecoupledCredit(GroupNorm(eps=1e-4), "sequence"), CLIP, TOKENS, KL),
    ("ecpo", {}, PLAIN, CappedRatio("token", 0.2, 0.1), ROWS, ()),
    ("ecpo", {"level": "sequence", "clip": 0.3, "delta": 0.2}, PLAIN, CappedRatio("product", 0.3, 0.2), ROWS, ()),
    ("ecpo", SPREAD, NARROW, CappedRatio("token", 0.2, 0.1), ROWS, ()),
    ("cispo", {}, PLAIN, DetachedRatio(0.0, 5.0), TOKENS, ()),
    ("cispo", {**SCALES, **SPREAD}, NARROW, DetachedRatio(0.5, 2.0), TOKENS, ()),
    ("gbpo", {}, PLAIN, GradientBounded("token"), ROWS, ()),
    ("gbpo", SIGNS, SignCredit(0.5, -1.0), GradientBounded("item"), ROWS, (KLPenalty(0.2),)),
    ("gbpo", SPREAD, NARROW, GradientBounded("token"), ROWS, ()),
    ("bapo", {}, PLAIN, ClippedRatio("token", CODE, 3.0), TOKENS, ()),
    ("bapo", {**SEARCH, **SPREAD, "dual_clip": None}, NARROW, ClippedRatio("token", PAPER), TOKENS, ()),
    ("sapo", {}, StepCredit(CLAMPED, "per_level", "think_and_sid"), CLIP, STEPS, KL),
    ("sapo", {"reduction": "token", "dual_clip": 3.0}, StepCredit(CLAMPED), DUAL, TOKENS, KL),
    ("sapo", {"scope": "think_only"}, StepCredit(CLAMPED, scope="think_only"), CLIP, STEPS, KL),
    ("sapo", {"ablation": "no_step_advantage"}, StepCredit(GroupNorm(), per_step=False), CLIP, STEPS, KL),
    ("sapo", {"ablation": "no_match_reward"}, StepCredit(CLAMPED, component="exact_match"), CLIP, STEPS, KL),
    ("sapo", {"ablation": "outcome", "exact_reward": "hit"}, ShapedOutcome(GroupNorm(), "hit"), CLIP, ROWS, KL),
    ("ce", {"reduction": "sequence", "kl_coef": 0.1}, ConstantCredit(), TargetLikelihood(), ROWS, (KLPenalty(0.1),)),
]


@pytest.mark.parametrize(("name", "options", "credit", "surrogate", "reduction", "terms"), PIECES)
def test_pieces(name, options, credit, surrogate, reduction, terms):
    objective = OBJECTIVES.build(name, options)
    assert (objective.credit, objective.surrogate, objective.reduction) == (credit, surrogate, reduction)
    assert objective.penalties == terms


def test_dapo_resamples():
    objective = OBJECTIVES.build("dapo", {"dynamic_sampling": 7, "denominator": "all"})
    assert (objective.dynamic_sampling, objective.drop_dead) == (7, "all")
    assert (OBJECTIVES.build("dapo").dynamic_sampling, OBJECTIVES.build("dapo").drop_dead) == (4, "kept")
    assert OBJECTIVES.build("grpo").dynamic_sampling == 0


def test_cispo_never_loses_a_gradient():
    batch, objective = sample("blocked", spread=4.0), OBJECTIVES.build("cispo", {"weight_min": 0.8, "weight_max": 1.2})
    experience = batch.experience(objective)
    _, gradient = batch.run(objective, experience)
    assert (gradient[experience.advantages != 0] != 0).all()
    told = objective.loss(Scores(batch.logps), experience).stats
    assert told["clip_fraction"] > 0


def test_ecpo_coefficient_is_capped():
    batch, objective = sample("blocked", spread=4.0), OBJECTIVES.build("ecpo")
    experience = batch.experience(objective)
    _, gradient = batch.run(objective, experience)
    some = experience.advantages != 0
    coefficient = (gradient / (-experience.weights * experience.advantages))[some]
    assert_same(coefficient.max(), 1.3)


def test_a_reward_with_small_numbers_counts_as_much_when_decoupled():
    """What summing first would drown."""
    batch = sample("sid")
    small = {**batch.rewards.values, "novelty": batch.rewards.values["novelty"] * 1e-3}
    whole, scaled = (
        DecoupledCredit(GroupNorm(eps=0.0))(batch.rollout, batch.with_rewards(values).rewards)
        for values in (batch.rewards.values, small)
    )
    assert_same(scaled, whole)


def test_weight_zero_is_not_optimised():
    batch = sample("sid")
    values = dict(batch.rewards.values)
    zero = DecoupledCredit()(batch.rollout, batch.with_rewards(values, novelty=0.0).rewards)
    del values["novelty"]
    left_out = DecoupledCredit()(batch.rollout, batch.with_rewards(values).rewards)
    assert_same(zero, left_out)


def test_a_dead_group_stays_at_exactly_zero_after_whitening():
    batch = sample("sid")
    assert (DecoupledCredit()(batch.rollout, batch.rewards)[8:12] == 0).all()


@pytest.mark.parametrize("whiten", ["sequence", "none"])
def test_mean_and_deviation_over_the_batch(whiten):
    batch = sample("blocked", prompts=6)
    rollout = batch.rollout
    credit = DecoupledCredit(GroupNorm(eps=0.0), whiten)
    summed = credit.summed(batch.rewards, rollout.group_size)
    advantages = credit(rollout, batch.rewards)[:, 1]  # the token after the forced mark
    expected = summed / summed.std() if whiten == "sequence" else summed
    some = rollout.chosen[:, 1]
    assert_same(advantages[some], expected[some])
    assert_same(summed.mean(), 0.0)
