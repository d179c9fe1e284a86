"""BAPO: clip bounds that move until good completions weigh enough."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.errors import ConfigError
from genrl.objectives.base import OBJECTIVES, PolicyObjective, Stats
from genrl.objectives.groups import OutcomeOptions, outcome_credit
from genrl.objectives.terms import Bound, Bounds, ClippedRatio, TokenMean, clipped, penalties
from genrl.ops import world_sum
from genrl.options import option


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
    """

    low: Range
    high: Range
    target: float
    """Share (paper) or quotient (code) to reach."""
    variant: Literal["code", "paper"] = "code"
    count: Literal["surrogate", "active"] = "surrogate"
    """Clipped tokens count with their clipped value ("surrogate"), or not at all ("active")."""

    uses_scores = True

    def path(self) -> list[tuple[float, float]]:
        """Pairs (low, high) in the order they are tried."""
        lows, highs = self.low.values(), self.high.values()
        if self.variant == "paper":
            return [(lows[0], high) for high in highs] + [(low, highs[-1]) for low in lows[1:]]
        return [(low, highs[0]) for low in lows] + [(lows[-1], high) for high in highs[1:]]

    def balance(self, ratios: Tensor, advantages: Tensor, completions: Completions) -> Tensor:
        """How much positives weigh at each pair of the path [number of pairs], over all ranks."""
        counts = completions.chosen.to(ratios.dtype)
        if self.variant == "paper":
            counts = counts * completions.logps.exp()
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

    def search(self, ratios: Tensor, advantages: Tensor, completions: Completions) -> Stats:
        """Find the bounds for the current ratios and give them to every row."""
        reached = self.balance(ratios, advantages, completions) >= self.target
        first = torch.where(reached.any(), reached.to(torch.int64).argmax(), len(reached) - 1)
        low, high = torch.tensor(self.path(), dtype=ratios.dtype, device=ratios.device)[first]
        rows = ratios.shape[0]
        return {"clip_low": low.expand(rows), "clip_high": high.expand(rows)}

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        return self.search(torch.ones_like(advantages), advantages, completions)

    def before_step(self, scores: Scores, batch: Experience, ratios: Tensor) -> Stats:
        return self.search(ratios, batch.advantages, batch.completions)

    def __call__(self, batch: Experience) -> tuple[Bound, Bound]:
        return batch.extras["clip_low"][:, None], batch.extras["clip_high"][:, None]

    def stats(self, batch: Experience) -> Stats:
        return {"clip_low": batch.extras["clip_low"].mean(), "clip_high": batch.extras["clip_high"].mean()}


@dataclass
class BAPOConfig(OutcomeOptions):
    """Options of `bapo`; the defaults are those of the authors' recipe."""

    variant: Literal["code", "paper"] = "code"
    """Criterion and order of the search: see `AdaptiveBounds`."""
    target: float = 1.0
    """Weight of positives to reach: positive / negative (code), or share of positives (paper: 0.4)."""
    low: list[float] = option([0.6, 0.8], ge=0, length=2, says="must be a first and a last value, e.g. [0.6,0.8]")
    """First and last lower bound (paper: 0.6, 0.9)."""
    high: list[float] = option([1.2, 2.0], ge=0, length=2, says="must be a first and a last value, e.g. [1.2,2.0]")
    """First and last upper bound (paper: 1.2, 3.0)."""
    step_low: float = option(0.05, gt=0)
    """Step of the lower bound (paper: 0.02)."""
    step_high: float = option(0.05, gt=0)
    """Step of the upper bound."""
    count: Literal["surrogate", "active"] = "surrogate"
    """Clipped tokens count with their clipped value, or not at all."""
    dual_clip: float | None = option(3.0, gt=1)
    """Largest ratio that a negative advantage feels; null: unbounded (paper)."""


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
        credit=outcome_credit(config),
        surrogate=ClippedRatio("token", bounds, config.dual_clip),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )


def _range(name: str, ends: list[float], step: float) -> Range:
    if ends[0] > ends[1]:
        raise ConfigError(f"objective 'bapo': {name}={ends} is no range. The first must not be larger.")
    return Range(ends[0], ends[1], step)
