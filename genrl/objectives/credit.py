"""Credit: which completion, step and token gets how much of the reward."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import Credit, Setting
from genrl.objectives.terms import item_tokens
from genrl.ops import group_view, segment_gather, world_sum

Normalize = Literal["std", "mean", "none"]
Guard = Literal["add", "clamp"]
Per = Literal["completion", "item"]
ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Rewards of a group whose range is at most this share of their largest size are equal."""


class Comparison(Protocol):
    """A way to compare the completions of a group."""

    def missing(self, setting: Setting) -> Iterator[str]:
        """What it needs and the setting lacks; see `Objective.missing`."""

    def __call__(self, values: Tensor, group_size: int, sizes: Tensor | None = None) -> Tensor:
        """Rewards [B, ...] -> advantages of their shape, 0 in groups equal up to rounding; see `normalized`."""


@dataclass(frozen=True)
class GroupNorm:
    """How rewards are compared within the group of one prompt."""

    normalize: Normalize = "std"
    """Centre and divide by the deviation ("std"), only centre ("mean"), or leave the rewards ("none")."""
    ddof: int = 1
    """1 divides the squares by G - 1 (TRL, verl), 0 by G (the formula as printed)."""
    eps: float = 1e-6
    guard: Guard = "add"
    """Divide by std + eps ("add": TRL, verl) or by max(std, eps) ("clamp": SAPO's code)."""
    singleton: Literal["zero", "raw"] = "zero"
    """Advantage of a group of one: "zero" refuses such groups, "raw" takes the reward itself (verl)."""

    @property
    def compares(self) -> bool:
        """Whether a completion needs others to be compared with."""
        return self.normalize != "none" and self.singleton == "zero"

    def missing(self, setting: Setting) -> Iterator[str]:
        """Groups of two, unless nothing is compared."""
        if self.compares and setting.group_size < 2:
            yield (
                f"several completions per prompt to compare; rollout.group_size is {setting.group_size}. "
                f"Set it to 2 or more, e.g. rollout.group_size=16"
            )

    def __call__(self, values: Tensor, group_size: int, sizes: Tensor | None = None) -> Tensor:
        """Values [B, ...] `normalized` within groups, after a look at whether there is anything to compare."""
        if self.compares and group_size < 2:
            raise ConfigError(
                "advantages compare the completions of a group: rollout.group_size is 1, set it to 2 or more."
            )
        if self.normalize == "none" or group_size < 2:
            return values
        return normalized(values, group_size, self, sizes)


def normalized(values: Tensor, group_size: int, how: GroupNorm | None = None, sizes: Tensor | None = None) -> Tensor:
    """Centre values within their group and divide them by its deviation: A = (R - mean_g) / (std_g + eps).

    Outcome GRPO of DeepSeekMath (arXiv:2402.03300), which states neither eps nor degrees of freedom; the defaults are
    verl's.
    A group of values that are equal up to rounding gets exactly 0, because the division would blow the rounding up.
    Rewards are sums of float32 numbers. Added up in any order, n summands are off by at most (n - 1) u times the sum
    of their sizes, u = eps / 2 of float32 (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), so two
    sums that ought to be equal differ by at most (n - 1) eps times that; `ROUNDING` allows n = 17 summands.

    Args:
        values: rewards [B, ...]; each trailing place (a step) is normalised by itself.
        group_size: at least 2.
        how: by default `GroupNorm()`.
        sizes: sums of the sizes of what `values` are sums of, in their shape; None: the summands have one sign.

    Example:
        >>> normalized(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2, GroupNorm(normalize="mean"))
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    how = how or GroupNorm()
    groups = group_view(values, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if how.normalize == "std":
        deviation = groups.std(1, correction=how.ddof, keepdim=True)
        centred = centred / (deviation + how.eps if how.guard == "add" else deviation.clamp(min=how.eps))
    high, low = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
    largest = group_view(values.abs() if sizes is None else sizes, group_size).amax(1, keepdim=True)
    equal = high - low <= ROUNDING * largest
    return centred.masked_fill(equal, 0).flatten(0, 1)


def spread(values: Tensor, completions: Completions) -> Tensor:
    """Give each chosen token the value of its row: [B] -> [B, T]."""
    return values[:, None] * completions.chosen


@dataclass(frozen=True)
class OutcomeCredit(Credit):
    """One advantage per completion, the same for all its tokens (GRPO)."""

    norm: Comparison = GroupNorm()
    component: str | None = None
    """Name of the reward that counts; None: the weighted sum of all."""

    def missing(self, setting: Setting) -> Iterator[str]:
        yield from self.norm.missing(setting)
        if self.component is not None:
            yield from missing_reward(self.component, setting)

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        values, sizes = (
            each.outcome if self.component is None else component(each, self.component)
            for each in (rewards, rewards.absolute)
        )
        return spread(self.norm(values, completions.group_size, sizes), completions)


def missing_reward(name: str, setting: Setting) -> Iterator[str]:
    """What is wrong if the reward `name` is not configured."""
    if name not in setting.rewards:
        yield f"the reward {name!r}; rewards are [{', '.join(setting.rewards)}]. Add rewards.{name}.weight=1"


def component(rewards: Rewards, name: str) -> Tensor:
    """One reward by name [B]; a ConfigError if it was not computed."""
    if name not in rewards.components:
        known = ", ".join(rewards.components) or "none"
        raise ConfigError(
            f"the objective needs the reward {name!r}; computed rewards: {known}. Add rewards.{name}.weight=1"
        )
    return rewards.components[name]


GDPO_NORM = GroupNorm(eps=1e-4)


@dataclass(frozen=True)
class DecoupledCredit(Credit):
    """Each reward normalised within the group by itself, then summed, then scaled over the batch (GDPO, SAGE).

    s_i = sum_m w_m (R_im - mean_g) / (std_g + eps); A_i = (s_i - mean_B) / (std_B + eps): equations 4-6 of
    arXiv:2601.05242, equation 7 of arXiv:2601.21452. With groups of one size mean_B is 0 and is not subtracted, so
    that a group of equal rewards stays at exactly 0.

    Per item, A_in is made the same way for item n of completion i: a reward per item is compared with what the other
    completions of the group have at place n, any other reward with theirs as a whole; the items of a completion share
    its place in the batch. A token gets what its item has; one of no item (thinking, the end) the mean over the items.
    """

    norm: GroupNorm = GDPO_NORM
    """Its eps and ddof serve the batch as well."""
    whiten: Literal["sequence", "token", "none"] = "sequence"
    """Over the batch, every completion counts once ("sequence"); or weighted by chosen tokens and centred, with the
    variance guarded by 1e-8 ("token": verl's code); or there is no such step ("none")."""
    apart: bool = True
    """Normalise each reward by itself, as the papers do; else their weighted sum, as one reward."""
    per: Per = "completion"
    """One advantage for all tokens of a completion, or one for each item."""

    def missing(self, setting: Setting) -> Iterator[str]:
        yield from self.norm.missing(setting)
        if not setting.rewards and self.apart:
            yield "at least one reward by name; none is configured. Add e.g. rewards.exact_match.weight=1"

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        summed = self.summed(rewards, completions.group_size)
        if self.per == "item":
            summed = (summed[:, None] if summed.dim() == 1 else summed).expand(completions.items.shape)
        if self.whiten == "sequence":
            squares = summed.square() if summed.dim() == 1 else summed.square().mean(1)
            squares, count = world_sum(torch.stack([squares.sum(), summed.new_tensor(len(summed))]))
            summed = summed / ((squares / (count - self.norm.ddof)).sqrt() + self.norm.eps)
        elif self.whiten == "token":
            counts = item_tokens(completions) if self.per == "item" else completions.chosen.sum(1)
            summed = whitened(summed, counts.to(summed.dtype))
        return spread(summed, completions) if self.per == "completion" else spread_items(summed, completions)

    def summed(self, rewards: Rewards, group_size: int) -> Tensor:
        """Weighted sum of the normalised rewards [B], or [B, N] per item, before the batch is looked at."""
        if not self.apart:
            return self.norm(rewards.outcome, group_size, rewards.absolute.outcome)
        weights = {name: value for name, value in rewards.weights.items() if value}
        if not weights:
            raise ConfigError(
                "decoupled advantages need rewards by name and weight; Rewards.weights has none other than 0."
            )
        total: Tensor | None = None
        for name, weight in weights.items():
            values, sizes = (self._compared(each, name) for each in (rewards, rewards.absolute))
            part = self.norm(values, group_size, sizes) * weight
            if total is not None and total.dim() != part.dim():
                total, part = (each[:, None] if each.dim() == 1 else each for each in (total, part))
            total = part if total is None else total + part
        assert total is not None
        return total

    def _compared(self, rewards: Rewards, name: str) -> Tensor:
        """What is compared within the group [B], or [B, N] of a reward per item where advantages are per item."""
        per_item = self.per == "item" and name in rewards.per_item
        return rewards.values[name] if per_item else rewards.components[name]


def spread_items(values: Tensor, completions: Completions) -> Tensor:
    """Give each chosen token the value of its item, or the mean over items where it has none: [B, N] -> [B, T]."""
    own = segment_gather(values, completions.item_ids)
    return torch.where(completions.item_mask, own, values.mean(1, keepdim=True)) * completions.chosen


def whitened(values: Tensor, counts: Tensor) -> Tensor:
    """Centre and scale values by mean and deviation over all tokens of all ranks, with `counts` of tokens per value.

    (values - mean) / sqrt(variance + 1e-8), the variance divided by the number of tokens less one.
    """
    total, tokens = world_sum(torch.stack([(values * counts).sum(), counts.sum()]))
    mean = total / tokens.clamp(min=1)
    squares = world_sum(((values - mean).square() * counts).sum())
    return (values - mean) * torch.rsqrt(squares / (tokens - 1).clamp(min=1) + 1e-8)
