"""Policy objectives: rewards in, loss out. Each built-in is four pieces; `OBJECTIVES` lists them by name."""

from genrl.objectives import bapo, gbpo, grpo, sage, sapo, supervised, variants  # noqa: F401 (they register themselves)
from genrl.objectives.adaptive import AdaptiveBounds, Range
from genrl.objectives.base import OBJECTIVES, Credit, Objective, ObjectiveOutput, Penalty, Piece, Reduction, Surrogate
from genrl.objectives.bounded import GradientBounded
from genrl.objectives.credit import ConstantCredit, GroupNorm, OutcomeCredit, SignCredit
from genrl.objectives.decoupled import DecoupledCredit
from genrl.objectives.diversity import Diversity
from genrl.objectives.needs import check_needs
from genrl.objectives.penalty import EntropyBonus, KLPenalty, penalties
from genrl.objectives.policy import PolicyObjective, live_prompts, renormalized
from genrl.objectives.reduction import ConstantLength, SequenceMean, StepMean, TokenMean
from genrl.objectives.slate import DiversityBounds, PhiRatio
from genrl.objectives.step_credit import StepCredit
from genrl.objectives.surrogate import Bounds, CappedRatio, ClippedRatio, DetachedRatio, FixedBounds, LogLikelihood

__all__ = [
    "OBJECTIVES",
    "AdaptiveBounds",
    "Bounds",
    "CappedRatio",
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
    "KLPenalty",
    "LogLikelihood",
    "Objective",
    "ObjectiveOutput",
    "OutcomeCredit",
    "Penalty",
    "PhiRatio",
    "Piece",
    "PolicyObjective",
    "Range",
    "Reduction",
    "SequenceMean",
    "SignCredit",
    "StepCredit",
    "StepMean",
    "Surrogate",
    "TokenMean",
    "check_needs",
    "live_prompts",
    "penalties",
    "renormalized",
]
