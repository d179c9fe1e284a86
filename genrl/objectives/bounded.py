"""GBPO's surrogate: no clip, the sampling probability is raised until the gradient is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.objectives.base import Stats, Surrogate
from genrl.objectives.surrogate import ratio_stats
from genrl.ops import segment_gather, segment_sum


def bounded_ratio(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    """Divide pi by pi'_old: pi'_old = max(pi_old, sg(pi)) for A >= 0 and max(pi_old, 1 - sg(pi)) for A < 0.

    OneRec-V2 (arXiv:2508.20900, section 3.1.2). Only the numerator carries gradient, so value and coefficient are
    min(r, 1) for A >= 0 and min(r, pi / (1 - pi)) for A < 0: never more than r, nor than the coefficient of binary
    cross-entropy.

    Args:
        logps: log pi with gradient, nats.
        old_logps: log pi_old, nats.
        advantages: sign chooses the bound.

    Returns:
        Ratios with gradient, in the shape of `logps`.

    Example:
        >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
        >>> bounded_ratio(half, quarter, torch.tensor([-1.0]))
        tensor([1.])
    """
    now = logps.detach().clamp(max=0)
    rest = torch.log(-torch.expm1(now))  # log(1 - pi), exact for small pi
    bound = torch.maximum(old_logps, torch.where(advantages >= 0, now, rest))
    return torch.exp(logps - bound)


def item_segments(rollout: Completions) -> tuple[Tensor, int]:
    """Which item each chosen item token belongs to [B, T] (-1 none), and the number of items."""
    return rollout.item_ids.masked_fill(~rollout.chosen, -1), rollout.items.shape[1]


@dataclass(frozen=True)
class GradientBounded(Surrogate):
    """Ratio with bounded gradient times advantage (GBPO).

    The paper writes the probability of an item but analyses "a specific token": both are offered.

    Args:
        level: "token"; or "item": product over the tokens that decide an item, one value per item and their mean per
            completion. At item level negatives almost vanish (pi is tiny, so pi / (1 - pi) is), and thinking gets none.
    """

    level: Literal["token", "item"] = "token"

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the surrogate [B, T]."""
        ratios, advantages = self.ratios(scores, batch)
        values = ratios * advantages
        if self.level == "token":
            return values, ratio_stats(ratios, batch.completions)
        segments, count = item_segments(batch.completions)
        present = segment_sum((segments >= 0).to(values.dtype), segments, count) > 0
        mean = (values * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        told = ratio_stats(segment_gather(ratios, segments), batch.completions)
        return mean.expand_as(batch.advantages), told

    def ratios(self, scores: Scores, batch: Experience) -> tuple[Tensor, Tensor]:
        """Bounded ratios with gradient and their advantages: [B, T] at token level, [B, N] at item level."""
        rollout, advantages = batch.completions, batch.advantages
        logps, old = scores.logps.masked_fill(~rollout.chosen, 0), rollout.logps.masked_fill(~rollout.chosen, 0)
        if self.level == "token":
            return bounded_ratio(logps, old, advantages), advantages
        segments, count = item_segments(rollout)
        tokens = segment_sum((segments >= 0).to(logps.dtype), segments, count).clamp(min=1)
        credit = segment_sum(advantages, segments, count) / tokens
        return bounded_ratio(segment_sum(logps, segments, count), segment_sum(old, segments, count), credit), credit
