"""Penalties: costs per token beside the surrogate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.batches import Experience, Scores
from genrl.errors import ConfigError
from genrl.objectives.base import Penalty, Stats
from genrl.ops import masked_mean


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate the KL divergence from the reference per token, in nats: exp(d) - d - 1 with d = ref - new.

    Equation 4 of DeepSeekMath (arXiv:2402.03300), as in TRL; verl clamps d and the result, we do not. Its gradient with
    respect to `logps` is 1 - exp(d).

    Args:
        logps: log-probabilities of the sampled tokens under the policy [B, T], nats.
        ref_logps: the same under the reference [B, T], nats.

    Returns:
        Values >= 0 [B, T].

    Example:
        >>> k3(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.])
    """
    difference = ref_logps - logps
    return torch.expm1(difference) - difference


@dataclass(frozen=True)
class KLPenalty(Penalty):
    """Coefficient times the k3 estimate to `completions.ref_logps`.

    Args:
        coef: weight of one nat.
    """

    coef: float

    uses_reference = True

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the cost [B, T] and the mean divergence per chosen token.

        Raises:
            ConfigError: if the rollout was not scored under a reference.
        """
        if batch.completions.ref_logps is None:
            raise ConfigError(
                "a KL penalty needs rollout.ref_logps. Score the rollout under the reference, or set kl_coef=0."
            )
        mask = batch.completions.chosen
        divergence = k3(scores.logps.masked_fill(~mask, 0), batch.completions.ref_logps.masked_fill(~mask, 0))
        return self.coef * divergence, {"kl": masked_mean(divergence, mask)}


@dataclass(frozen=True)
class EntropyBonus(Penalty):
    """Minus coefficient times the policy's entropy, with gradient.

    Args:
        coef: weight of one nat; negative values punish entropy.
    """

    coef: float

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the (negative) cost [B, T].

        Raises:
            ConfigError: if the scores hold no entropy.
        """
        if scores.entropy is None:
            raise ConfigError(
                "an entropy bonus needs scores.entropy. Ask the policy for entropies, or set entropy_coef=0."
            )
        return -self.coef * scores.entropy.masked_fill(~batch.completions.chosen, 0), {}


def penalties(kl_coef: float, entropy_coef: float) -> tuple[Penalty, ...]:
    """Return the penalties whose coefficient is not 0, so that a coefficient of 0 costs nothing.

    Example:
        >>> penalties(0.001, 0.0)
        (KLPenalty(coef=0.001),)
    """
    kl = (KLPenalty(kl_coef),) if kl_coef else ()
    return (*kl, EntropyBonus(entropy_coef)) if entropy_coef else kl
