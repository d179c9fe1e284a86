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
from genrl.objectives.ce import LogLikelihood
from genrl.objectives.credit import ConstantCredit, DecoupledCredit, GroupNorm, OutcomeCredit, SignCredit
from genrl.objectives.gbpo import GradientBounded
from genrl.objectives.penalty import EntropyBonus, KLPenalty, penalties
from genrl.objectives.reduction import ConstantLength, SequenceMean, TokenMean
from genrl.objectives.sage import Diversity, DiversityBounds, PhiRatio
from genrl.objectives.sapo import StepCredit, StepMean
from genrl.objectives.surrogate import Bounds, ClippedRatio, FixedBounds
from genrl.objectives.variants import CappedRatio, DetachedRatio

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
