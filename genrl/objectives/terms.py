"""Terms of the loss that several objectives share: clipped ratios, penalties, and how tokens are weighed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.errors import ConfigError
from genrl.objectives.base import Penalty, Piece, Reduction, Setting, Stats, Surrogate
from genrl.ops import masked_mean, segment_sum

Level = Literal["token", "sequence", "sequence_token", "item", "item_token", "product"]
Bound = float | Tensor


def log_ratios(scores: Scores, completions: Completions) -> Tensor:
    """Log of new over old probability of each chosen token [B, T], nats; 0 elsewhere."""
    return (scores.logps - completions.logps).masked_fill(~completions.chosen, 0)


def item_tokens(completions: Completions) -> Tensor:
    """Chosen tokens that decide each item of a completion [B, N], with the dtype of its log-probabilities."""
    return segment_sum(chosen_tokens(completions), completions.item_ids, completions.items.shape[1])


def pooled(values: Tensor, completions: Completions, level: Level) -> Tensor:
    """Gather logs of tokens [B, T], 0 outside `chosen`, into logs of the unit that is bounded.

    "token": as they are [B, T]. Else [B, 1]: "product": their sum; "sequence": mean over chosen tokens (geometric mean
    of ratios); "item": sum divided by the number of items with a chosen token (thinking counts with the item it leads
    to). "sequence_token" and "item_token" are the units of "sequence" and "item".
    """
    if level == "token":
        return values
    total = values.sum(1, keepdim=True)
    return total if level == "product" else total / _units(completions, level).to(values.dtype)


def _units(completions: Completions, level: Level) -> Tensor:
    """How many of its units each completion has [B, 1]: chosen tokens, or items with one; at least 1."""
    units = item_tokens(completions) > 0 if level.startswith("item") else completions.chosen
    return units.sum(1, keepdim=True).clamp(min=1)


def ratio(logs: Tensor, completions: Completions, level: Level) -> Tensor:
    """Ratio of new to old probability at a level, with gradient, spread to tokens [B, T].

    "sequence_token" is GSPO-token (arXiv:2507.18071, equations 13-14): the value of the sequence ratio, the gradient of
    the token's own log-probability, sg(s_i) * pi / sg(pi). "item_token" is the same for "item": sg(r_i) * (pi /
    sg(pi))^(n/L) with n chosen tokens and L items, so that with one advantage per completion and equal weights of its
    tokens the gradient is that of "item".
    """
    if level in ("sequence_token", "item_token"):
        share = _units(completions, "sequence") / _units(completions, level).to(logs.dtype)
        return pooled(logs, completions, level).detach().exp() * torch.exp(share * (logs - logs.detach()))
    return pooled(logs, completions, level).exp().expand_as(logs)


def clipped(
    ratios: Tensor,
    advantages: Tensor,
    low: Bound,
    high: Bound,
    dual_clip: float | None = None,
    minimum: bool = True,
) -> Tensor:
    """Where the surrogate is flat [B, T]: A > 0 and r above `high`; A < 0 and r below `low` or above `dual_clip`.

    Without the minimum with r A, either bound flattens it whatever the sign.
    """
    if not minimum:
        return (ratios > high) | (ratios < low)
    bad = advantages < 0
    flat = ((advantages > 0) & (ratios > high)) | (bad & (ratios < low))
    return flat if dual_clip is None else flat | (bad & (ratios > dual_clip))


def clipped_surrogate(
    ratios: Tensor,
    advantages: Tensor,
    low: Bound,
    high: Bound,
    dual_clip: float | None = None,
    tolerance: float = 0.0,
    minimum: bool = True,
) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, low, high) A) [B, T], and where it is flat; options as in `ClippedRatio`.

    Its gradient is that of r A inside and exactly 0 outside the bounds: written as a choice, because the gradient of a
    minimum is split where both sides are equal.

    Example:
        >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), 0.8, 1.2)[0]
        tensor([ 1.2000, -1.5000])
    """
    flat = clipped(ratios, advantages, low - tolerance, high + tolerance, dual_clip, minimum)
    above, below = ratios.detach().clamp(max=high), ratios.detach().clamp(min=low)
    held = torch.where(advantages > 0 if minimum else ratios > high, above, below)
    if dual_clip is not None:
        held = torch.where(advantages < 0, held.clamp(max=dual_clip), held)
    return torch.where(flat, held, ratios) * advantages, flat


def ratio_stats(ratios: Tensor, completions: Completions, flat: Tensor | None = None) -> Stats:
    """Mean and largest ratio of the chosen tokens, and the share that a bound flattened."""
    seen = ratios.detach()
    told = {
        "ratio_mean": masked_mean(seen, completions.chosen),
        "ratio_max": seen.masked_fill(~completions.chosen, 0).max() if seen.numel() else seen.sum(),
    }
    return told if flat is None else {**told, "clip_fraction": masked_mean(flat.to(seen.dtype), completions.chosen)}


class Bounds(Piece, ABC):
    """Lower and upper bound of the ratio: numbers, or tensors that broadcast to [B, T]."""

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        """Tensors [B, ...] that the bounds depend on, for `Experience.extras`."""
        return {}

    def before_step(self, scores: Scores, batch: Experience, ratios: Tensor) -> Stats:
        """Such tensors anew, for the policy as it is now with its ratios [B, T]."""
        return {}

    @abstractmethod
    def __call__(self, batch: Experience) -> tuple[Bound, Bound]: ...

    def stats(self, batch: Experience) -> Stats:
        """Scalars about the bounds."""
        return {}


@dataclass(frozen=True)
class FixedBounds(Bounds):
    """The ratio may move in [1 - low, 1 + high]."""

    low: float
    high: float

    def __call__(self, batch: Experience) -> tuple[Bound, Bound]:
        return 1.0 - self.low, 1.0 + self.high


@dataclass(frozen=True)
class ClippedRatio(Surrogate):
    """PPO's clipped surrogate min(r A, clip(r) A) on a ratio of tokens, sequences or items."""

    level: Level
    bounds: Bounds
    dual_clip: float | None = None
    """Largest ratio that a negative advantage feels (verl: 3.0); None: unbounded, as in the papers."""
    tolerance: float = 0.0
    """Ratios this close outside a bound count as on it."""
    minimum: bool = True
    """Take the smaller of r A and clip(r) A, as PPO does; else clip(r) A, which both bounds flatten."""

    @property
    def uses_scores(self) -> bool:  # type: ignore[override]
        """As the bounds."""
        return self.bounds.uses_scores

    def missing(self, setting: Setting) -> Iterator[str]:
        return self.bounds.missing(setting)

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        return self.bounds.notices(updates, in_words)

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        return self.bounds.prepare(completions, advantages)

    def before_step(self, scores: Scores, batch: Experience) -> Stats:
        return self.bounds.before_step(scores, batch, self.ratios(scores, batch))

    def ratios(self, scores: Scores, batch: Experience) -> Tensor:
        """With gradient [B, T]."""
        return ratio(log_ratios(scores, batch.completions), batch.completions, self.level)

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        ratios = self.ratios(scores, batch)
        low, high = self.bounds(batch)
        how = (self.dual_clip, self.tolerance, self.minimum)
        values, flat = clipped_surrogate(ratios, batch.advantages, low, high, *how)
        return values, {**ratio_stats(ratios, batch.completions, flat), **self.bounds.stats(batch)}


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate the KL divergence from the reference per token, in nats [B, T]: exp(d) - d - 1 with d = ref - new.

    Equation 4 of DeepSeekMath (arXiv:2402.03300), as in TRL. verl keeps d within +-20 and the result within +-10, where
    the gradient ends; we do not. Its gradient with respect to `logps` is 1 - exp(d).
    """
    difference = ref_logps - logps
    return torch.expm1(difference) - difference


@dataclass(frozen=True)
class KLPenalty(Penalty):
    """Coefficient times the k3 estimate to `completions.ref_logps`."""

    coef: float

    uses_reference = True

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        if batch.completions.ref_logps is None:
            raise ConfigError(
                "a KL penalty needs rollout.ref_logps. Score the rollout under the reference, or set kl_coef=0."
            )
        mask = batch.completions.chosen
        divergence = k3(scores.logps.masked_fill(~mask, 0), batch.completions.ref_logps.masked_fill(~mask, 0))
        return self.coef * divergence, {"kl": masked_mean(divergence, mask)}


@dataclass(frozen=True)
class EntropyBonus(Penalty):
    """Minus coefficient times the policy's entropy, with gradient; a negative coefficient punishes entropy."""

    coef: float

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        if scores.entropy is None:
            raise ConfigError(
                "an entropy bonus needs scores.entropy. Ask the policy for entropies, or set entropy_coef=0."
            )
        return -self.coef * scores.entropy.masked_fill(~batch.completions.chosen, 0), {}


def penalties(kl_coef: float, entropy_coef: float) -> tuple[Penalty, ...]:
    """The penalties whose coefficient is not 0, so that a coefficient of 0 costs nothing."""
    kl = (KLPenalty(kl_coef),) if kl_coef else ()
    return (*kl, EntropyBonus(entropy_coef)) if entropy_coef else kl


def chosen_tokens(completions: Completions) -> Tensor:
    """[B, T]: 1 on tokens that the policy chose, with the dtype of its log-probabilities."""
    return completions.chosen.to(completions.logps.dtype)


@dataclass(frozen=True)
class TokenMean(Reduction):
    """Every chosen token weighs the same: w = mask / sum of mask over the batch (DAPO; "token_mean")."""

    def __call__(self, completions: Completions) -> Tensor:
        return chosen_tokens(completions)


@dataclass(frozen=True)
class SequenceMean(Reduction):
    """Every completion weighs the same, and its tokens share: w = mask_i / (B * |y_i|) (GRPO; "seq_mean_token_mean").

    B counts the completions with at least one chosen token. A surrogate with one value per completion (GSPO, SAGE)
    becomes the plain mean over completions.
    """

    def __call__(self, completions: Completions) -> Tensor:
        chosen = chosen_tokens(completions)
        return chosen / chosen.sum(1, keepdim=True).clamp(min=1)


def reduction(name: Literal["token", "sequence"]) -> Reduction:
    """The reduction of that name, as options spell it."""
    return TokenMean() if name == "token" else SequenceMean()
