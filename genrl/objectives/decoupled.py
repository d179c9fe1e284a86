"""Credit from several rewards that are normalised apart: GDPO and SAGE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import Credit
from genrl.objectives.credit import GroupNorm, component, spread
from genrl.ops import world_sum

GDPO_NORM = GroupNorm(eps=1e-4)


@dataclass(frozen=True)
class DecoupledCredit(Credit):
    """Each reward normalised within the group by itself, then summed, then scaled over the batch (GDPO, SAGE).

    s_i = sum_m w_m (R_im - mean_g) / (std_g + eps); A_i = (s_i - mean_B) / (std_B + eps): equations 4-6 of
    arXiv:2601.05242, equation 7 of arXiv:2601.21452. With groups of one size mean_B is 0 and is not subtracted, so
    that a group of equal rewards stays at exactly 0.

    Args:
        norm: how completions are compared; its eps and ddof serve the batch as well.
        whiten: "sequence": every completion counts once; "token": weighted by chosen tokens and centred, with the
            variance guarded by 1e-8 (verl's code); "none": no step over the batch.
    """

    norm: GroupNorm = GDPO_NORM
    whiten: Literal["sequence", "token", "none"] = "sequence"

    @property
    def needs(self) -> frozenset[str]:
        """Groups and the rewards one by one."""
        return self.norm.needs | {"components"}

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T].

        Raises:
            ConfigError: if the rewards are not there one by one.
        """
        summed = self.summed(rewards, rollout.group_size)
        if self.whiten == "sequence":
            squares, count = world_sum(torch.stack([summed.square().sum(), summed.new_tensor(summed.shape[0])]))
            summed = summed / ((squares / (count - self.norm.ddof)).sqrt() + self.norm.eps)
        elif self.whiten == "token":
            summed = whitened(summed, rollout.chosen.sum(1).to(summed.dtype))
        return spread(summed, rollout)

    def summed(self, rewards: Rewards, group_size: int) -> Tensor:
        """Weighted sum of the normalised rewards [B], before the batch is looked at."""
        weights: Mapping[str, float] = {name: value for name, value in rewards.weights.items() if value}
        if not weights:
            raise ConfigError("decoupled advantages need rewards by name and weight; Rewards.weights has none above 0.")
        return sum(  # type: ignore[return-value]
            self.norm(component(rewards, name), group_size) * weight for name, weight in weights.items()
        )


def whitened(values: Tensor, counts: Tensor) -> Tensor:
    """Centre and scale rows by mean and deviation over all tokens of all ranks.

    Args:
        values: [B], one per completion.
        counts: [B] chosen tokens of the completion.

    Returns:
        (values - mean) / sqrt(variance + 1e-8) [B], the variance divided by the number of tokens less one.
    """
    total, tokens = world_sum(torch.stack([(values * counts).sum(), counts.sum()]))
    mean = total / tokens.clamp(min=1)
    squares = world_sum(((values - mean).square() * counts).sum())
    return (values - mean) * torch.rsqrt(squares / (tokens - 1).clamp(min=1) + 1e-8)
