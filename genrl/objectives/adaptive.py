"""BAPO's bounds: loosened over the whole batch until positive completions weigh enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.objectives.base import Stats
from genrl.objectives.surrogate import Bound, Bounds, clipped
from genrl.ops import world_sum


@dataclass(frozen=True)
class Range:
    """Values a bound takes in the search: from `start` to `stop` in steps of `step`, both ends included."""

    start: float
    stop: float
    step: float

    def values(self) -> list[float]:
        """All values, added up one step at a time; the last is at most `stop`.

        Example:
            >>> Range(0.6, 0.7, 0.05).values()
            [0.6, 0.65, 0.7000000000000001]
        """
        values = [self.start]
        while values[-1] + self.step <= self.stop + 1e-9:
            values.append(values[-1] + self.step)
        return values


@dataclass(frozen=True)
class AdaptiveBounds(Bounds):
    """Bounds of BAPO (arXiv:2510.18927): the first pair on a path of loosening where positives weigh at least `target`.

    Paper: rho = sum_{A>0} pi_old |U| / sum pi_old |U|, the upper bound is raised first. Code: sum_{A>0} |U| /
    sum_{A<0} |U|, the lower bound is raised first. U is r A with positives cut at c_high and negatives held above
    c_low. Paper, figure and code are three different formulas; the code's is the one that can be repeated.

    Searched in `prepare` for the policy that sampled (all ratios 1), and anew in `before_step` for the current one. If
    no pair reaches the target, the last one holds.

    Args:
        low: path of the lower bound.
        high: path of the upper bound.
        target: share (paper) or quotient (code) to reach.
        variant: "code" or "paper".
        count: "surrogate": clipped tokens count with their clipped value; "active": only tokens with gradient count.
    """

    low: Range
    high: Range
    target: float
    variant: Literal["code", "paper"] = "code"
    count: Literal["surrogate", "active"] = "surrogate"

    @property
    def needs(self) -> frozenset[str]:
        """The scores of the whole mini-batch before each step."""
        return frozenset({"scores"})

    def path(self) -> list[tuple[float, float]]:
        """Pairs (low, high) in the order they are tried."""
        lows, highs = self.low.values(), self.high.values()
        if self.variant == "paper":
            return [(lows[0], high) for high in highs] + [(low, highs[-1]) for low in lows[1:]]
        return [(low, highs[0]) for low in lows] + [(lows[-1], high) for high in highs[1:]]

    def balance(self, ratios: Tensor, advantages: Tensor, rollout: Completions) -> Tensor:
        """How much positives weigh at each pair of the path [number of pairs], over all ranks."""
        counts = rollout.chosen.to(ratios.dtype)
        if self.variant == "paper":
            counts = counts * rollout.logps.exp()
        sums = []
        for low, high in self.path():
            sizes = (
                advantages.abs() * counts * torch.where(advantages > 0, ratios.clamp(max=high), ratios.clamp(min=low))
            )
            if self.count == "active":
                sizes = sizes.masked_fill(clipped(ratios, advantages, low, high), 0)
            sums.append(torch.stack([(sizes * (advantages > 0)).sum(), (sizes * (advantages < 0)).sum()]))
        positive, negative = world_sum(torch.stack(sums)).unbind(1)
        return positive / (negative + 1e-8 if self.variant == "code" else (positive + negative).clamp(min=1e-12))

    def search(self, ratios: Tensor, advantages: Tensor, rollout: Completions) -> Stats:
        """Find the bounds for the current ratios and give them to every row."""
        reached = self.balance(ratios, advantages, rollout) >= self.target
        first = torch.where(reached.any(), reached.to(torch.int64).argmax(), len(reached) - 1)
        low, high = torch.tensor(self.path(), dtype=ratios.dtype, device=ratios.device)[first]
        rows = ratios.shape[0]
        return {"clip_low": low.expand(rows), "clip_high": high.expand(rows)}

    def prepare(self, rollout: Completions, advantages: Tensor) -> Stats:
        """Bounds for the policy that sampled."""
        return self.search(torch.ones_like(advantages), advantages, rollout)

    def before_step(self, scores: Scores, batch: Experience, ratios: Tensor) -> Stats:
        """Bounds for the current policy."""
        return self.search(ratios, batch.advantages, batch.completions)

    def __call__(self, batch: Experience) -> tuple[Bound, Bound]:
        """Return (low, high) [B, 1]."""
        return batch.extras["clip_low"][:, None], batch.extras["clip_high"][:, None]

    def stats(self, batch: Experience) -> Stats:
        """The bounds."""
        return {"clip_low": batch.extras["clip_low"].mean(), "clip_high": batch.extras["clip_high"].mean()}
