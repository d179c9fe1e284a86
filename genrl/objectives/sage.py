"""SAGE: one ratio per completion, bounds that depend on how diverse it is, each reward normalised apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from genrl.batches import Completions, Experience, Scores
from genrl.errors import ConfigError, suggest
from genrl.objectives.base import OBJECTIVES, GroupOptions, PolicyObjective, Setting, Stats, Surrogate
from genrl.objectives.credit import DecoupledCredit, GroupNorm, Per
from genrl.objectives.terms import (
    Bound,
    Bounds,
    ClippedRatio,
    Level,
    SequenceMean,
    log_ratios,
    penalties,
    pooled,
    ratio,
    ratio_stats,
)
from genrl.ops import group_view, world_sum
from genrl.options import option

Phi = Literal["literal", "resolved", "gbpo_slate"]
Rule = Literal["auto", "clipped", "literal", "resolved", "gbpo_slate"]
Source = Literal["auto", "slate", "group", "policy"]

INERT = (
    "With one optimiser step per rollout every ratio is 1, so {} no effect. Set rollout.epochs=2 or "
    "rollout.minibatches=2."
)
"""What is said where bounds of the ratio cannot act."""
WORDY = (
    "objective.ratio_level=auto is `item` for form=clipped: the ratio of a title is the product of those of its many "
    "tokens and soon outside every bound. Set objective.ratio_level=token for items in words."
)
"""What is said where items have many tokens and nobody chose the level of the ratio."""


def category_entropy(categories: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Shannon entropy in nats [R] of the categories [R, N] in each row; unknown ones (-1) are left out; 0 without any.

    Example:
        >>> category_entropy(torch.tensor([[0, 1], [2, 2], [-1, -1]]))
        tensor([0.6931, 0.0000, 0.0000])
    """
    known = categories >= 0
    same = (categories[:, :, None] == categories[:, None, :]) & known[:, None, :]
    total = known.sum(1, keepdim=True).clamp(min=1).to(dtype)
    rarity = (total / same.sum(2).to(dtype)).masked_fill(~known, 1)
    return (torch.log(rarity) / total).sum(1)


class Diversity(nn.Module):
    """Diversity H of completions and its running mean over rollouts (SAGE, arXiv:2601.21452, eq. 6 and Alg. 1 line 35).

    Args:
        source: "slate": entropy over the categories of the completion's items (paper); "group": over the items of all
            completions of the prompt; "policy": mean entropy of the distributions its tokens were drawn from; "auto":
            slate where completions have several items, else group (one item has no entropy).
        decay: share of the running mean that stays at each update; the paper gives none.
        init: starting value in nats; None: the mean of the first rollout.
        category: item column that is counted; None: data.columns.category. Whoever writes completions numbers it.
    """

    mean: Tensor
    pending: Tensor

    def __init__(
        self, source: Source = "auto", decay: float = 0.99, init: float | None = None, category: str | None = None
    ) -> None:
        super().__init__()
        self.category = category
        self.source = source
        self.decay = decay
        start = float("nan") if init is None else init
        self.register_buffer("mean", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("pending", torch.tensor(float("nan"), dtype=torch.float64))

    def missing(self, setting: Setting) -> Iterator[str]:
        """Categories, and several items if the slate alone is looked at."""
        kept = setting.attributes
        if self.category is not None and kept is not None and self.category not in kept:
            yield (
                f"the item column {self.category!r} (objective.category); columns kept in data.columns.attributes are "
                f"[{', '.join(kept)}].{suggest(self.category, kept)} Add the column there, or leave objective.category "
                f"out for data.columns.category"
            )
            return
        if self.category is not None and kept is not None and setting.categories is False and self.source != "policy":
            yield (
                f"item categories; no item has a value in the column {self.category!r} (objective.category). Name "
                f"another one of data.columns.attributes, or leave objective.category out for data.columns.category"
            )
            return
        if self.source == "slate" and setting.items == 1:
            yield (
                "several items per completion; this layout has one. "
                "Set objective.diversity=group, or choose layout=slate"
            )
        if self.source != "policy" and setting.categories is False:
            yield (
                "item categories; the item table has none. Name their column in data.columns.category, "
                "or set objective.diversity=policy"
            )

    def measure(self, completions: Completions) -> Tensor:
        """Diversity of each completion [B], nats; a ConfigError if the rollout lacks what it is measured on."""
        dtype = completions.logps.dtype
        if self.source == "policy":
            if completions.entropy is None:
                raise ConfigError("diversity 'policy' needs rollout.entropy. Record entropies, or set diversity=group.")
            chosen = completions.chosen.to(dtype)
            return (completions.entropy.to(dtype) * chosen).sum(1) / chosen.sum(1).clamp(min=1)
        if completions.categories is None:
            raise ConfigError(
                f"diversity {self.source!r} needs item categories; the rollout has none. Name their "
                f"column (data.columns.category), or set diversity=policy."
            )
        several = completions.items.shape[1] > 1
        if self.source == "slate" and not several:
            raise ConfigError(
                "diversity 'slate' needs several items per completion, this layout has one. Set diversity=group."
            )
        if self.source == "slate" or (self.source == "auto" and several):
            return category_entropy(completions.categories, dtype)
        groups = group_view(completions.categories, completions.group_size).flatten(1)
        return category_entropy(groups, dtype).repeat_interleave(completions.group_size)

    def prepare(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """Diversity of each completion [B] and the running mean before this rollout (a scalar), in nats.

        The mean of the rollout, over all ranks, is kept for `after_step`.
        """
        measured = self.measure(completions)
        total, rows = world_sum(torch.stack([measured.double().sum(), measured.new_tensor(len(measured)).double()]))
        self.pending.copy_(total / rows.clamp(min=1))
        self.mean.copy_(torch.where(self.mean.isnan(), self.pending, self.mean))
        return measured, self.mean.to(measured.dtype)

    def after_step(self) -> None:
        """Move the mean once per rollout: mean <- decay * mean + (1 - decay) * mean of the rollout."""
        moved = self.decay * self.mean + (1 - self.decay) * self.pending
        self.mean.copy_(torch.where(self.pending.isnan(), self.mean, moved))
        self.pending.fill_(float("nan"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Diversity:
        """Move to a device, but stay float64: a bfloat16 mean would never move by 1 %."""
        kept = {name: value.clone() for name, value in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"source={self.source!r}, decay={self.decay}" + f", category={self.category!r}" * bool(self.category)


def homogeneity_factor(diversity: Tensor, mean: Tensor, beta: float) -> Tensor:
    """Lambda = 1 + beta * tanh(max(0, mean - H)) [B]: above 1 for less diverse completions than usual (equation 6)."""
    return 1 + beta * torch.tanh((mean - diversity).clamp(min=0))


@dataclass(frozen=True)
class Diverse:
    """What both forms of SAGE know of each completion: its diversity H and lambda."""

    diversity: Diversity
    boost: float = 0.3
    """Room of the ratio above 1 for good completions."""
    beta: float = 0.5
    """Strength of the entropy term."""
    wordy: str = field(default="", repr=False)
    """What to say before training where completions name items by words."""

    def missing(self, setting: Setting) -> Iterator[str]:
        """What the diversity is measured on."""
        return self.diversity.missing(setting)

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        """That nothing here acts where all ratios are 1, and that items in words want another level of the ratio."""
        if updates == 1:
            yield INERT.format("boost, beta and the diversity of completions have")
        if in_words and self.wordy:
            yield self.wordy

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        """H and lambda of each completion [B]."""
        measured, mean = self.diversity.prepare(completions)
        return {"diversity": measured, "lambda": homogeneity_factor(measured, mean, self.beta)}

    def stats(self, batch: Experience) -> Stats:
        """Their means."""
        return {"mean_diversity": batch.extras["diversity"].mean(), "mean_lambda": batch.extras["lambda"].mean()}


@dataclass(frozen=True)
class DiversityBounds(Diverse, Bounds):
    """SAGE's bounds (Algorithm 1): boosted above for A >= 0, a floor that falls with homogeneity for A < 0.

    A >= 0: [1 - clip, 1 + boost]; A < 0: [2 - lambda, 1 + clip]. With the minimum `clip` is inert in both: it keeps the
    lower bound of a positive and the upper bound of a negative from acting.
    """

    clip: float = 0.2
    """The paper's eps_clip (value not given there)."""
    floor: Literal["lambda", "clip_lambda"] = "lambda"
    """Either 2 - lambda as printed, which is exactly 1 for a diverse negative, or 2 - lambda - clip ("clip_lambda"),
    which leaves those a gradient after the first step of a rollout."""

    def __call__(self, batch: Experience) -> tuple[Bound, Bound]:
        positive = batch.advantages >= 0
        floor = 2 - batch.extras["lambda"][:, None] - (self.clip if self.floor == "clip_lambda" else 0.0)
        whole = torch.ones_like(batch.advantages)
        low = torch.where(positive, whole * (1 - self.clip), floor)
        return low, torch.where(positive, whole * (1 + self.boost), whole * (1 + self.clip))


@dataclass(frozen=True)
class PhiRatio(Diverse, Surrogate):
    """SAGE's gradient form (equation 3): U = A r / sg(Phi), without any flat part.

    The printed Phi for negatives, max(1, (1 - r) / lambda), is always 1, and the one for positives contradicts its own
    text; `docs/objectives.md` has the argument.
    """

    level: Level = "token"
    """Of the ratio and of the probability pi~ (a geometric mean)."""
    phi: Phi = "resolved"
    """Equations 4 and 5 as printed ("literal"); coefficient min(r, 1 + boost) for A >= 0 and min(r, lambda pi~ /
    (1 - pi~)) for A < 0 ("resolved"); the same with boost 0 and lambda 1 ("gbpo_slate")."""

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        """As for both forms; where a bad completion is held to its odds, these act at a ratio of 1, too."""
        if self.phi == "literal":
            yield from super().notices(updates, in_words)
            return
        if self.phi == "resolved" and updates == 1:
            yield INERT.format("boost has")
        if in_words and self.wordy:
            yield self.wordy

    def ratios(self, scores: Scores, batch: Experience) -> tuple[Tensor, Tensor]:
        """Ratios with gradient and their divisors Phi, both [B, T]."""
        completions, advantages = batch.completions, batch.advantages
        ratios = ratio(log_ratios(scores, completions), completions, self.level)
        now, old = (
            pooled(logps.detach().masked_fill(~completions.chosen, 0), completions, self.level).exp()
            for logps in (scores.logps, completions.logps)
        )
        positive, negative = self._phi(ratios.detach(), now, old, batch.extras["lambda"][:, None])
        return ratios, torch.where(advantages >= 0, positive, negative)

    def _phi(self, ratios: Tensor, now: Tensor, old: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Phi for A >= 0 and for A < 0, [B, T] or [B, 1] each."""
        top = 1 + self.boost
        if self.phi == "literal":
            positive = torch.where(ratios > top, torch.full_like(ratios, 1 / top), torch.ones_like(ratios))
            return positive, ((1 - ratios) / strength).clamp(min=1)
        if self.phi == "gbpo_slate":
            return ratios.clamp(min=1), ((1 - now) / old).clamp(min=1)
        return (ratios / top).clamp(min=1), ((1 - now) / (strength * old)).clamp(min=1)

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        ratios, phi = self.ratios(scores, batch)
        return batch.advantages * ratios / phi, {**ratio_stats(ratios, batch.completions), **self.stats(batch)}


@dataclass(frozen=True)
class BySign(Surrogate):
    """One surrogate for good completions (A >= 0), another for bad ones; both know the same diversity."""

    good: Surrogate
    bad: Surrogate

    def missing(self, setting: Setting) -> Iterator[str]:
        return self.good.missing(setting)

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        yield from (*self.good.notices(updates, in_words), *self.bad.notices(updates, in_words))

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        return self.good.prepare(completions, advantages)

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        (good, told), (bad, _) = (surrogate(scores, batch) for surrogate in (self.good, self.bad))
        shown = {name: value for name, value in told.items() if name != "clip_fraction"}  # of one sign only
        return torch.where(batch.advantages >= 0, good, bad), shown


@dataclass
class SAGEConfig(GroupOptions):
    """Options of `sage`."""

    form: Literal["clipped", "gradient"] = "clipped"
    """Algorithm 1 (clipped surrogate), or equation 3 (gradient divided by Phi)."""
    phi: Phi = "resolved"
    """gradient: equations 4-5 as printed, their evident meaning, or GBPO on the slate."""
    positive: Rule = "auto"
    """Rule of good completions alone: Algorithm 1, or that of a `phi`; auto: as form and phi say."""
    negative: Rule = "auto"
    """Rule of bad completions alone; auto: as form and phi say."""
    minimum: bool = True
    """Algorithm 1 takes the smaller of r A and clip(r) A; false: clip(r) A, as equation 2 is printed, where both bounds
    act."""
    ratio_level: Literal["auto", "item", "token"] = "auto"
    """Geometric mean over items (equation 8) or over tokens (its prose); auto: item for `clipped`, token for
    `gradient`. Items in words (layout.space=text) want token: the ratio of a title of n tokens is that of one to the
    power of n, and soon outside every bound."""
    boost: float = option(0.3, ge=0)
    """Room of the ratio above 1 for good completions (eps_boost)."""
    clip: float = option(0.2, ge=0, le=1)
    """eps_clip of Algorithm 1, whose value the paper does not give; without effect unless floor=clip_lambda or
    minimum=false."""
    beta: float = option(0.5, ge=0)
    """Strength of the entropy term in lambda."""
    floor: Literal["lambda", "clip_lambda"] = "lambda"
    """Lower bound of bad completions: 2 - lambda (Algorithm 1), or 2 - lambda - clip (better with several steps a
    completions)."""
    floor_tolerance: float = option(1e-4, ge=0)
    """Ratios this close outside a bound count as on it: before the first step r is 1 only up to rounding, and so is
    the floor."""
    diversity: Source = "auto"
    """H: entropy over the item categories of the slate or of the prompt's group, or the policy's entropy; auto: slate
    if it has several items, else group."""
    category: str | None = None
    """Item column whose values H counts, one of data.columns.attributes; null: data.columns.category."""
    ema_decay: float = option(0.99, ge=0, le=1)
    """Share of the running mean of H that stays at each rollout."""
    ema_init: float | None = None
    """Starting value of the running mean, nats; null: mean of the first rollout."""
    whiten: Literal["sequence", "token", "none"] = "sequence"
    """Scale the summed advantages over the batch."""
    advantage: Per = "completion"
    """One advantage for all tokens of a completion, or one for each of its items, from rewards per item; then the ratio
    keeps its value, and its gradient is that of each token."""
    ablation: Literal["none", "no_boost", "no_entropy", "summed"] = "none"
    """Leave a part out: the bound of good completions is 1; lambda is 1 for all; the weighted sum of the rewards is
    normalised as one reward."""


@OBJECTIVES.register(
    "sage",
    config=SAGEConfig,
    title="Sequence-level Adaptive Gradient Evolution",
    paper="arXiv:2601.21452",
    advice={"rollout.epochs": 2, "rollout.minibatches": 1},
)
def sage(config: SAGEConfig) -> PolicyObjective:
    """Sequence-level Adaptive Gradient Evolution (arXiv:2601.21452).

    loss = -1/B sum_i min(r_i A_i, clip_i(r_i) A_i), r_i = exp(1/L sum_n log pi(item n) / pi_old(item n)); bounds
    [1 - clip, 1 + boost] for A >= 0 and [2 - lambda_i, 1 + clip] for A < 0; lambda = 1 + beta tanh(max(0, mean H -
    H_i)).

    Algorithm 1 is the default; equations 4 and 5 contradict it and the text. With one step per rollout r = 1, so boost
    and beta have no effect in either printed form; a run takes two unless it is told how many.
    """
    own: Rule = "clipped" if config.form == "clipped" else config.phi
    positive, negative = (own if rule == "auto" else rule for rule in (config.positive, config.negative))
    _check(config, positive, negative)
    diversity = Diversity(config.diversity, config.ema_decay, config.ema_init, config.category)
    boost = 0.0 if config.ablation == "no_boost" else config.boost
    beta = 0.0 if config.ablation == "no_entropy" else config.beta
    per_item = config.ratio_level == "item" or (config.ratio_level == "auto" and config.form == "clipped")
    level: Level = "item" if per_item else "sequence"
    wordy = WORDY if per_item and config.ratio_level == "auto" else ""
    if config.advantage == "item":
        level = "item_token" if per_item else "sequence_token"

    def surrogate(rule: Rule) -> Surrogate:
        if rule != "clipped":
            return PhiRatio(diversity, boost, beta, wordy, level, cast(Phi, rule))
        bounds = DiversityBounds(diversity, boost, beta, wordy, config.clip, config.floor)
        return ClippedRatio(level, bounds, tolerance=config.floor_tolerance, minimum=config.minimum)

    good, bad = surrogate(positive), surrogate(negative)
    norm = GroupNorm(ddof=config.ddof, eps=config.eps)
    return PolicyObjective(
        credit=DecoupledCredit(norm, config.whiten, config.ablation != "summed", config.advantage),
        surrogate=good if good == bad else BySign(good, bad),
        reduction=SequenceMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


def _check(config: SAGEConfig, positive: Rule, negative: Rule) -> None:
    """Refuse options that would not act under these rules."""
    if config.ablation == "no_boost" and positive == "gbpo_slate":
        raise ConfigError(
            "objective 'sage': ablation=no_boost leaves out the boost of good completions, and gbpo_slate has none. "
            "Set positive=resolved, or leave ablation out."
        )
    if config.ablation == "no_entropy" and negative in ("literal", "gbpo_slate"):
        raise ConfigError(
            f"objective 'sage': ablation=no_entropy leaves out lambda, and {negative} holds bad completions to nothing "
            "that lambda moves. Set negative=resolved, or leave ablation out."
        )
    if not config.minimum and "clipped" not in (positive, negative):
        raise ConfigError(
            "objective 'sage': minimum=false is about Algorithm 1, and nothing is clipped here. "
            "Set form=clipped, or leave minimum out."
        )
    if config.advantage == "item" and config.ablation == "summed":
        raise ConfigError(
            "objective 'sage': ablation=summed gives one advantage to all items of a completion. "
            "Set advantage=completion, or leave ablation out."
        )
