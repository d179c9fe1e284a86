"""Credit: which completion, step and token gets how much of the reward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import Credit, Setting
from genrl.ops import group_view

Normalize = Literal["std", "mean", "none"]
Guard = Literal["add", "clamp"]
ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Rewards of a group whose range is at most this share of their largest size are equal."""


@dataclass(frozen=True)
class GroupNorm:
    """How rewards are compared within the group of one prompt.

    Args:
        normalize: "std" centres and divides by the deviation, "mean" only centres, "none" leaves the rewards.
        ddof: 1 divides the squares by G - 1 (TRL, verl), 0 by G (the formula as printed).
        eps: keeps the deviation away from 0.
        guard: "add": std + eps (TRL, verl); "clamp": max(std, eps) (SAPO's code).
        singleton: advantage of a group of one: "zero" refuses such groups, "raw" takes the reward itself (verl).
    """

    normalize: Normalize = "std"
    ddof: int = 1
    eps: float = 1e-6
    guard: Guard = "add"
    singleton: Literal["zero", "raw"] = "zero"

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
        """Return values [B, ...] of the same shape, normalised within groups of `group_size` rows; see `normalized`.

        Raises:
            ConfigError: if there is nothing to compare a completion with.
        """
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
        group_size: completions per prompt, at least 2.
        how: options; by default `GroupNorm()`.
        sizes: sums of the sizes of what `values` are sums of, in their shape; None: the summands have one sign.

    Returns:
        Advantages [B, ...].

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
    """One advantage per completion, the same for all its tokens (GRPO).

    Args:
        norm: how completions of a prompt are compared.
        component: name of the reward that counts; None: the weighted sum of all.
    """

    norm: GroupNorm = GroupNorm()
    component: str | None = None

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
    """Return one reward by name [B].

    Raises:
        ConfigError: if it was not computed.
    """
    if name not in rewards.components:
        known = ", ".join(rewards.components) or "none"
        raise ConfigError(
            f"the objective needs the reward {name!r}; computed rewards: {known}. Add rewards.{name}.weight=1"
        )
    return rewards.components[name]
