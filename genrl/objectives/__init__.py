"""Policy objectives: rewards in, loss out. Each built-in is four pieces; `OBJECTIVES` lists them by name."""

from genrl.objectives import bapo, ce, gbpo, grpo, sage, sapo, variants  # noqa: F401 (they register themselves)
from genrl.objectives.bapo import AdaptiveBounds, Range
from genrl.objectives.base import (
    OBJECTIVES,
    ClipOptions,
    Credit,
    GroupOptions,
    Objective,
    ObjectiveOutput,
    Options,
    Penalty,
    Piece,
    PolicyObjective,
    Reduction,
    Setting,
    Surrogate,
    live_prompts,
    renormalized,
)
from genrl.objectives.ce import ConstantCredit, LogLikelihood
from genrl.objectives.credit import GroupNorm, OutcomeCredit
from genrl.objectives.gbpo import GradientBounded, SignCredit
from genrl.objectives.sage import Diversity, DiversityBounds, PhiRatio
from genrl.objectives.sapo import StepCredit, StepMean
from genrl.objectives.terms import (
    Bounds,
    ClippedRatio,
    EntropyBonus,
    FixedBounds,
    KLPenalty,
    SequenceMean,
    TokenMean,
    penalties,
)
from genrl.objectives.variants import CappedRatio, ConstantLength, DecoupledCredit, DetachedRatio

__all__ = [
    "OBJECTIVES",
    "AdaptiveBounds",
    "Bounds",
    "CappedRatio",
    "ClipOptions",
    "ClippedRatio",
    "ConstantCredit",
    "ConstantLength",
    "Credit",
    "DecoupledCredit",
    "DetachedRatio",
    "Diversity",
    "DiversityBounds",
    "EntropyBonus",
    "FixedBounds",
    "GradientBounded",
    "GroupNorm",
    "GroupOptions",
    "KLPenalty",
    "LogLikelihood",
    "Objective",
    "ObjectiveOutput",
    "Options",
    "OutcomeCredit",
    "Penalty",
    "PhiRatio",
    "Piece",
    "PolicyObjective",
    "Range",
    "Reduction",
    "SequenceMean",
    "Setting",
    "SignCredit",
    "StepCredit",
    "StepMean",
    "Surrogate",
    "TokenMean",
    "live_prompts",
    "penalties",
    "renormalized",
]
