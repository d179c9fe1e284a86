"""SAGE: one ratio per completion, bounds that depend on how diverse it is, each reward normalised apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES, Surrogate
from genrl.objectives.credit import GroupNorm
from genrl.objectives.decoupled import DecoupledCredit
from genrl.objectives.diversity import Diversity, Source
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import SequenceMean
from genrl.objectives.slate import DiversityBounds, Phi, PhiRatio
from genrl.objectives.surrogate import ClippedRatio, Level


@dataclass
class SAGEConfig:
    """Options of `sage`."""

    form: Literal["clipped", "gradient"] = "clipped"
    """Algorithm 1 (clipped surrogate), or equation 3 (gradient divided by Phi)."""
    phi: Phi = "resolved"
    """gradient: equations 4-5 as printed, their evident meaning, or GBPO on the slate."""
    ratio_level: Literal["auto", "item", "token"] = "auto"
    """Geometric mean over items (equation 8) or over tokens (its prose); auto: item for `clipped`, token for
    `gradient`."""
    boost: float = 0.3
    """Room of the ratio above 1 for good completions (eps_boost)."""
    clip: float = 0.2
    """eps_clip of Algorithm 1, whose value the paper does not give; without effect unless floor=clip_lambda."""
    beta: float = 0.5
    """Strength of the entropy term in lambda."""
    floor: Literal["lambda", "clip_lambda"] = "lambda"
    """Lower bound of bad completions: 2 - lambda (Algorithm 1), or 2 - lambda - clip (better with several steps a
    rollout)."""
    floor_tolerance: float = 1e-4
    """Ratios this close outside a bound count as on it: before the first step r is 1 only up to rounding, and so is
    the floor."""
    diversity: Source = "auto"
    """H: entropy over the item categories of the slate or of the prompt's group, or the policy's entropy; auto: slate
    if it has several items, else group."""
    ema_decay: float = 0.99
    """Share of the running mean of H that stays at each rollout."""
    ema_init: float | None = None
    """Starting value of the running mean, nats; null: mean of the first rollout."""
    whiten: Literal["sequence", "token", "none"] = "sequence"
    """Scale the summed advantages over the batch."""
    ddof: int = 1
    """Deviations divide by count - ddof."""
    eps: float = 1e-6
    """Added to deviations."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (the paper mentions none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register(
    "sage", config=SAGEConfig, title="Sequence-level Adaptive Gradient Evolution", paper="arXiv:2601.21452"
)
def sage(config: SAGEConfig) -> PolicyObjective:
    """Sequence-level Adaptive Gradient Evolution (arXiv:2601.21452).

    loss = -1/B sum_i min(r_i A_i, clip_i(r_i) A_i), r_i = exp(1/L sum_n log pi(item n) / pi_old(item n)); bounds
    [1 - clip, 1 + boost] for A >= 0 and [2 - lambda_i, 1 + clip] for A < 0; lambda = 1 + beta tanh(max(0, mean H -
    H_i)).

    Algorithm 1 is the default; equations 4 and 5 contradict it and the text. With one step per rollout r = 1, so boost
    and beta have no effect in either printed form: use rollout.minibatches or rollout.epochs above 1 to see them.
    """
    diversity = Diversity(config.diversity, config.ema_decay, config.ema_init)
    per_item = config.ratio_level == "item" or (config.ratio_level == "auto" and config.form == "clipped")
    level: Level = "item" if per_item else "sequence"
    surrogate: Surrogate = PhiRatio(diversity, level, config.phi, config.boost, config.beta)
    if config.form == "clipped":
        bounds = DiversityBounds(diversity, config.boost, config.clip, config.beta, config.floor)
        surrogate = ClippedRatio(level, bounds, tolerance=config.floor_tolerance)
    return PolicyObjective(
        credit=DecoupledCredit(GroupNorm(ddof=config.ddof, eps=config.eps), config.whiten),
        surrogate=surrogate,
        reduction=SequenceMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
