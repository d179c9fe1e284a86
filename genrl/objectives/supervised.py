"""Cross-entropy on the targets: the control that every reward-driven objective has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES, Surrogate
from genrl.objectives.credit import ConstantCredit
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import reduction
from genrl.objectives.surrogate import LogLikelihood


@dataclass
class CEConfig:
    """Options of `ce`."""

    reduction: Literal["token", "sequence"] = "token"
    """Mean over all tokens, or over completions of means over tokens."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy; 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@dataclass(frozen=True)
class TargetLikelihood(LogLikelihood):
    """Log-likelihood of completions that are the targets."""

    @property
    def needs(self) -> frozenset[str]:
        """Targets in place of sampled completions."""
        return frozenset({"targets"})


@OBJECTIVES.register(
    "ce", config=CEConfig, title="Cross-entropy on the targets (control)", paper="none: supervised control"
)
def ce(config: CEConfig) -> PolicyObjective:
    """Cross-entropy: loss = -mean log pi(target token); the rollout holds the targets, one completion per prompt."""
    surrogate: Surrogate = TargetLikelihood()
    return PolicyObjective(
        credit=ConstantCredit(),
        surrogate=surrogate,
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
