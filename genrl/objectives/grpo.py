"""GRPO: one advantage per completion, clipped token ratios."""

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES, ClipOptions, PolicyObjective
from genrl.objectives.credit import GroupNorm, Guard, Normalize
from genrl.objectives.groups import OutcomeOptions, outcome_credit
from genrl.objectives.terms import ClippedRatio, FixedBounds, penalties, reduction
from genrl.options import option


@dataclass
class GRPOConfig(ClipOptions, OutcomeOptions):
    """Options of `grpo`."""

    dual_clip: float | None = option(None, gt=1)
    """Largest ratio that a negative advantage feels (verl: 3.0); null: unbounded."""
    normalize: Normalize = "std"
    """Divide centred rewards by their deviation, only centre them, or take them raw."""
    guard: Guard = "add"
    """Add eps to the deviation, or keep the deviation above it."""
    singleton: Literal["zero", "raw"] = "zero"
    """Groups of one: refused, or advantage = raw reward (verl)."""
    reduction: Literal["sequence", "token"] = "sequence"
    """Mean over completions of means over tokens (paper), or mean over all tokens (verl)."""
    kl_coef: float = 0.001
    """Weight of the KL penalty to the reference policy; 0 loads no reference."""


@OBJECTIVES.register("grpo", config=GRPOConfig, title="Group Relative Policy Optimization", paper="arXiv:2402.03300")
def grpo(config: GRPOConfig) -> PolicyObjective:
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300).

    loss = -1/B sum_i 1/|y_i| sum_t [ min(r A_i, clip(r, 1-e, 1+e) A_i) - kl_coef * k3 ], A_i = (R_i - mean_g) / (std_g
    + eps).

    The paper states neither eps nor clip; 1e-6 and 0.2 are verl's. Its KL weight is 0.04; 0.001 is what recommenders
    use.
    """
    norm = GroupNorm(config.normalize, config.ddof, config.eps, config.guard, config.singleton)
    return PolicyObjective(
        credit=outcome_credit(config, norm),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high), config.dual_clip),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )
