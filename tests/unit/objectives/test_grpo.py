"""The options of grpo."""

from __future__ import annotations

from genrl.objectives import (
    OBJECTIVES,
    ClippedRatio,
    EntropyBonus,
    FixedBounds,
    GroupNorm,
    KLPenalty,
    OutcomeCredit,
    SequenceMean,
    TokenMean,
)


def test_defaults() -> None:
    objective = OBJECTIVES.build("grpo")
    assert objective.credit == OutcomeCredit(GroupNorm("std", 1, 1e-6, "add"))
    assert objective.surrogate == ClippedRatio("token", FixedBounds(0.2, 0.2))
    assert objective.reduction == SequenceMean()
    assert objective.penalties == (KLPenalty(0.001),)


def test_options() -> None:
    options = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3.0, "normalize": "mean", "ddof": 0, "eps": 0.5}
    options |= {"guard": "clamp", "singleton": "raw", "reduction": "token", "kl_coef": 0.0, "entropy_coef": 0.1}
    objective = OBJECTIVES.build("grpo", options)
    assert objective.credit == OutcomeCredit(GroupNorm("mean", 0, 0.5, "clamp", "raw"))
    assert objective.surrogate == ClippedRatio("token", FixedBounds(0.1, 0.3), 3.0)
    assert objective.reduction == TokenMean()
    assert objective.penalties == (EntropyBonus(0.1),)
