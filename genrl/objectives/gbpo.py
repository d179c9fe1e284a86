"""GBPO: no clip; the gradient of each token is bounded instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES, Credit
from genrl.objectives.bounded import GradientBounded
from genrl.objectives.credit import GroupNorm, OutcomeCredit, SignCredit
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import SequenceMean


@dataclass
class GBPOConfig:
    """Options of `gbpo`."""

    level: Literal["token", "item"] = "token"
    """Bound the probability of each token, or of the item (product of its tokens)."""
    advantage: Literal["group", "sign"] = "group"
    """Group-relative advantage as in GRPO, or the paper's +1 / 0 / -1 by thresholds over the batch."""
    positive_quantile: float = 0.75
    """sign: +1 above this quantile of the batch's rewards (paper: the top quarter)."""
    negative_reward: float = 0.0
    """sign: -1 for rewards up to this."""
    ddof: int = 1
    """group: deviation divides by group size - ddof."""
    eps: float = 1e-6
    """group: added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (the paper mentions none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register("gbpo", config=GBPOConfig, title="Gradient-Bounded Policy Optimization", paper="arXiv:2508.20900")
def gbpo(config: GBPOConfig) -> PolicyObjective:
    """Gradient-Bounded Policy Optimization (OneRec-V2, arXiv:2508.20900, section 3.1.2).

    loss = -1/B sum_i 1/|y_i| sum_t pi / pi'_old A_i, with pi'_old = max(pi_old, sg(pi)) for A >= 0 and
    max(pi_old, 1 - sg(pi)) for A < 0. Every token keeps a gradient; its coefficient is min(r, 1) or min(r, pi / (1 -
    pi)).

    Deviation: the paper's advantage needs watch times and explicit dislikes (`advantage=sign` is its shape on our
    rewards); the default is the group-relative one that its baselines use, so that only the surrogate differs from
    `grpo`.
    """
    if config.advantage == "sign":
        credit: Credit = SignCredit(config.positive_quantile, config.negative_reward)
    else:
        credit = OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps))
    return PolicyObjective(
        credit=credit,
        surrogate=GradientBounded(config.level),
        reduction=SequenceMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
