"""Policy objectives: rewards in, loss out. Each built-in is four pieces; `OBJECTIVES` lists them by name."""

# ruff: noqa: F401 (what plug-ins import from here)
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
from genrl.objectives.credit import Comparison, DecoupledCredit, GroupNorm, OutcomeCredit
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

# isort: split
# A plug-in that moves in here imports the names above from this package.
from genrl.objectives.bapo import AdaptiveBounds, Range
from genrl.objectives.ce import ConstantCredit, LogLikelihood
from genrl.objectives.gbpo import GradientBounded, SignCredit
from genrl.objectives.groups import BestOfGroup, OutcomeOptions, PassAtK
from genrl.objectives.grpo import GRPOConfig
from genrl.objectives.opd import TeacherCredit
from genrl.objectives.sage import Diversity, DiversityBounds, PhiRatio
from genrl.objectives.sapo import StepCredit, StepMean
from genrl.objectives.variants import CappedRatio, ConstantLength, DetachedRatio
