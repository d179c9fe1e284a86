"""Credit: which completion, step and token gets how much of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import Credit
from genrl.ops import group_view, world_size, world_sum

Normalize = Literal["std", "mean", "none"]
Guard = Literal["add", "clamp"]


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
    def needs(self) -> frozenset[str]:
        """Groups of two, unless nothing is compared."""
        compares = self.normalize != "none" and self.singleton == "zero"
        return frozenset({"group"}) if compares else frozenset()

    def __call__(self, values: Tensor, group_size: int) -> Tensor:
        """Return values [B, ...] of the same shape, normalised within groups of `group_size` rows.

        Raises:
            ConfigError: if there is nothing to compare a completion with.
        """
        if "group" in self.needs and group_size < 2:
            raise ConfigError(
                "advantages compare the completions of a group: rollout.group_size is 1, set it to 2 or more."
            )
        if self.normalize == "none" or group_size < 2:
            return values
        return normalized(values, group_size, self)


def normalized(values: Tensor, group_size: int, how: GroupNorm | None = None) -> Tensor:
    """Centre values within their group and divide them by its deviation: A = (R - mean_g) / (std_g + eps).

    Outcome GRPO of DeepSeekMath (arXiv:2402.03300), which states neither eps nor degrees of freedom; the defaults are
    verl's.
    A group of equal values gets exactly 0: rounding of the mean must not be blown up by the division.

    Args:
        values: rewards [B, ...]; each trailing place (a step) is normalised by itself.
        group_size: completions per prompt, at least 2.
        how: options; by default `GroupNorm()`.

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
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return centred.masked_fill(equal, 0).flatten(0, 1)


def spread(values: Tensor, rollout: Completions) -> Tensor:
    """Give each chosen token the value of its row: [B] -> [B, T]."""
    return values[:, None] * rollout.chosen


@dataclass(frozen=True)
class OutcomeCredit(Credit):
    """One advantage per completion, the same for all its tokens (GRPO).

    Args:
        norm: how completions of a prompt are compared.
        component: name of the reward that counts; None: the weighted sum of all.
    """

    norm: GroupNorm = GroupNorm()
    component: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Groups, and the component if one is named."""
        return self.norm.needs | ({f"component:{self.component}"} if self.component else frozenset())

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]."""
        values = rewards.outcome if self.component is None else component(rewards, self.component)
        return spread(self.norm(values, rollout.group_size), rollout)


@dataclass(frozen=True)
class SignCredit(Credit):
    """+1, 0 or -1 per completion, by thresholds over the batch (OneRec-V2, arXiv:2508.20900 section 3.1.2).

    A = +1 if the reward is above the `quantile` of the whole batch (and not negative), -1 if it is at most `negative`,
    else 0. The paper ranks watch times within buckets of video length and takes the top quarter; negative feedback is
    explicit there. Here the outcome reward stands for both signals.

    Args:
        quantile: share of the batch that is not good enough.
        negative: rewards up to this are negative feedback.
    """

    quantile: float = 0.75
    negative: float = 0.0

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]."""
        outcome = rewards.outcome
        threshold = torch.quantile(_of_all_ranks(outcome), self.quantile)
        bad = outcome <= self.negative
        good = (outcome > threshold) & ~bad
        return spread(good.to(outcome.dtype) - bad.to(outcome.dtype), rollout)


def _of_all_ranks(values: Tensor) -> Tensor:
    """Values [B] of all ranks, one after the other; the number of rows may differ between ranks."""
    world = world_size()
    if world == 1:
        return values
    rank = torch.distributed.get_rank()
    counts = torch.zeros(world, dtype=torch.int64, device=values.device)
    counts[rank] = values.shape[0]
    counts = world_sum(counts)
    starts = torch.cumsum(counts, 0) - counts
    everything = values.new_zeros(int(counts.sum()))
    everything[starts[rank] : starts[rank] + values.shape[0]] = values
    return world_sum(everything)


@dataclass(frozen=True)
class ConstantCredit(Credit):
    """Advantage 1 everywhere: imitate the completions."""

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return ones [B, T] on chosen tokens."""
        return rollout.chosen.to(rewards.outcome.dtype)


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
