"""BAPO: clip bounds that move until good completions weigh enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genrl.errors import ConfigError
from genrl.objectives.adaptive import AdaptiveBounds, Range
from genrl.objectives.base import OBJECTIVES
from genrl.objectives.credit import GroupNorm, OutcomeCredit
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import TokenMean
from genrl.objectives.surrogate import ClippedRatio


@dataclass
class BAPOConfig:
    """Options of `bapo`; the defaults are those of the authors' recipe."""

    variant: Literal["code", "paper"] = "code"
    """Criterion and order of the search: see `AdaptiveBounds`."""
    target: float = 1.0
    """Weight of positives to reach: positive / negative (code), or share of positives (paper: 0.4)."""
    low: list[float] = field(default_factory=lambda: [0.6, 0.8])
    """First and last lower bound (paper: 0.6, 0.9)."""
    high: list[float] = field(default_factory=lambda: [1.2, 2.0])
    """First and last upper bound (paper: 1.2, 3.0)."""
    step_low: float = 0.05
    """Step of the lower bound (paper: 0.02)."""
    step_high: float = 0.05
    """Step of the upper bound."""
    count: Literal["surrogate", "active"] = "surrogate"
    """Clipped tokens count with their clipped value, or not at all."""
    dual_clip: float | None = 3.0
    """Largest ratio that a negative advantage feels; null: unbounded (paper)."""
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (paper: none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register(
    "bapo", config=BAPOConfig, title="Balanced Policy Optimization with Adaptive Clipping", paper="arXiv:2510.18927"
)
def bapo(config: BAPOConfig) -> PolicyObjective:
    """BAPO (arXiv:2510.18927): GRPO with clip bounds searched over the batch of every optimiser step."""
    bounds = AdaptiveBounds(
        _range("low", config.low, config.step_low),
        _range("high", config.high, config.step_high),
        config.target,
        config.variant,
        config.count,
    )
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps)),
        surrogate=ClippedRatio("token", bounds, config.dual_clip),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


def _range(name: str, ends: list[float], step: float) -> Range:
    if len(ends) != 2 or ends[0] > ends[1] or step <= 0:
        raise ConfigError(
            f"objective 'bapo': {name}={ends} with step_{name}={step} is no range. Give first and last value, the "
            f"first not larger, and a step above 0, e.g. {name}=[0.6,0.8] step_{name}=0.05"
        )
    return Range(ends[0], ends[1], step)
