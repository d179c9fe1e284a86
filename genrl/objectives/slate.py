"""SAGE's surrogates: bounds that depend on diversity, and the gradient form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.objectives.base import Stats, Surrogate
from genrl.objectives.diversity import Diversity, homogeneity_factor
from genrl.objectives.surrogate import Bound, Bounds, Level, log_ratios, pooled, ratio_stats

Phi = Literal["literal", "resolved", "gbpo_slate"]


@dataclass(frozen=True)
class DiversityBounds(Bounds):
    """SAGE's bounds (Algorithm 1): boosted above for A >= 0, a floor that falls with homogeneity for A < 0.

    A >= 0: [1 - clip, 1 + boost]; A < 0: [2 - lambda, 1 + clip]. `clip` is inert in both, because the minimum keeps the
    lower bound of a positive and the upper bound of a negative from acting.

    Args:
        diversity: measures H and keeps its running mean.
        boost: room above 1 for good completions.
        clip: the paper's eps_clip (value not given there).
        beta: strength of the entropy term.
        floor: "lambda": 2 - lambda as printed, which is exactly 1 for a diverse negative; "clip_lambda":
            2 - lambda - clip, which leaves those a gradient after the first step of a rollout.
    """

    diversity: Diversity
    boost: float = 0.3
    clip: float = 0.2
    beta: float = 0.5
    floor: Literal["lambda", "clip_lambda"] = "lambda"

    @property
    def needs(self) -> frozenset[str]:
        """What diversity is measured on."""
        return self.diversity.needs

    def prepare(self, rollout: Completions, advantages: Tensor) -> Stats:
        """Measure the rollout."""
        measured, mean = self.diversity.prepare(rollout)
        return {"diversity": measured, "lambda": homogeneity_factor(measured, mean, self.beta)}

    def __call__(self, batch: Experience) -> tuple[Bound, Bound]:
        """Return (low, high) [B, T]."""
        positive = batch.advantages >= 0
        floor = 2 - batch.extras["lambda"][:, None] - (self.clip if self.floor == "clip_lambda" else 0.0)
        whole = torch.ones_like(batch.advantages)
        low = torch.where(positive, whole * (1 - self.clip), floor)
        return low, torch.where(positive, whole * (1 + self.boost), whole * (1 + self.clip))

    def stats(self, batch: Experience) -> Stats:
        """Mean diversity and mean lambda of the completions."""
        return {"mean_diversity": batch.extras["diversity"].mean(), "mean_lambda": batch.extras["lambda"].mean()}


@dataclass(frozen=True)
class PhiRatio(Surrogate):
    """SAGE's gradient form (equation 3): U = A r / sg(Phi), without any flat part.

    The printed Phi for negatives, max(1, (1 - r) / lambda), is always 1, and the one for positives contradicts its own
    text; `docs/objectives.md` has the argument.

    Args:
        diversity: measures H and keeps its running mean.
        level: of the ratio and of the probability pi~ (a geometric mean).
        phi: "literal": equations 4 and 5 as printed; "resolved": coefficient min(r, 1 + boost) for A >= 0 and
            min(r, lambda pi~ / (1 - pi~)) for A < 0; "gbpo_slate": the same with boost 0 and lambda 1.
        boost: room above 1 for good completions.
        beta: strength of the entropy term.
    """

    diversity: Diversity
    level: Level = "token"
    phi: Phi = "resolved"
    boost: float = 0.3
    beta: float = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """What diversity is measured on."""
        return self.diversity.needs

    def prepare(self, rollout: Completions, advantages: Tensor) -> Stats:
        """Measure the rollout."""
        measured, mean = self.diversity.prepare(rollout)
        return {"diversity": measured, "lambda": homogeneity_factor(measured, mean, self.beta)}

    def ratios(self, scores: Scores, batch: Experience) -> tuple[Tensor, Tensor]:
        """Ratios with gradient and their divisors Phi, both [B, T]."""
        rollout, advantages = batch.completions, batch.advantages
        ratios = pooled(log_ratios(scores, rollout), rollout, self.level).exp()
        now, old = (
            pooled(logps.detach().masked_fill(~rollout.chosen, 0), rollout, self.level).exp()
            for logps in (scores.logps, rollout.logps)
        )
        positive, negative = self._phi(ratios.detach(), now, old, batch.extras["lambda"][:, None])
        return ratios.expand_as(advantages), torch.where(advantages >= 0, positive, negative)

    def _phi(self, ratios: Tensor, now: Tensor, old: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Phi for A >= 0 and for A < 0, [B, 1] each."""
        top = 1 + self.boost
        if self.phi == "literal":
            positive = torch.where(ratios > top, torch.full_like(ratios, 1 / top), torch.ones_like(ratios))
            return positive, ((1 - ratios) / strength).clamp(min=1)
        if self.phi == "gbpo_slate":
            return ratios.clamp(min=1), ((1 - now) / old).clamp(min=1)
        return (ratios / top).clamp(min=1), ((1 - now) / (strength * old)).clamp(min=1)

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the surrogate [B, T]."""
        ratios, phi = self.ratios(scores, batch)
        told = {"mean_diversity": batch.extras["diversity"].mean(), "mean_lambda": batch.extras["lambda"].mean()}
        return batch.advantages * ratios / phi, {**ratio_stats(ratios, batch.completions), **told}
