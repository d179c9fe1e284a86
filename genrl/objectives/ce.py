"""Cross-entropy on the targets: the control that every reward-driven objective has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives.base import OBJECTIVES, Credit, Options, PolicyObjective, Setting, Stats, Surrogate
from genrl.objectives.terms import penalties, reduction
from genrl.ops import masked_mean


@dataclass(frozen=True)
class ConstantCredit(Credit):
    """Advantage 1 everywhere: imitate the completions."""

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        return completions.chosen.to(completions.logps.dtype)


@dataclass(frozen=True)
class LogLikelihood(Surrogate):
    """Advantage times log-probability: supervised imitation where every advantage is 1."""

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        logps = scores.logps.masked_fill(~batch.completions.chosen, 0)
        return batch.advantages * logps, {"nll": -masked_mean(logps, batch.completions.chosen)}


@dataclass
class CEConfig(Options):
    """Options of `ce`."""

    reduction: Literal["token", "sequence"] = "token"
    """Mean over all tokens, or over completions of means over tokens."""


@dataclass(frozen=True)
class TargetLikelihood(LogLikelihood):
    """Log-likelihood of completions that are the targets."""

    trains_on_targets = True

    def missing(self, setting: Setting) -> Iterator[str]:
        if setting.thinking:
            yield "a layout without thinking, because nobody wrote the thinking before a target. Choose layout=sid"


@OBJECTIVES.register(
    "ce", config=CEConfig, title="Cross-entropy on the targets (control)", paper="none: supervised control"
)
def ce(config: CEConfig) -> PolicyObjective:
    """Cross-entropy: loss = -mean log pi(target token); the rollout holds the targets, one completion per prompt."""
    return PolicyObjective(
        credit=ConstantCredit(),
        surrogate=TargetLikelihood(),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
