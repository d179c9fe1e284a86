"""What the completions of a group are worth together: credit for the best of k, and repair of groups without a hit."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Literal

import torch
from torch import Tensor

from genrl.errors import ConfigError
from genrl.objectives.base import GroupOptions, Setting
from genrl.objectives.credit import ROUNDING, Comparison, GroupNorm, OutcomeCredit
from genrl.ops import group_view
from genrl.options import option


@dataclass(frozen=True)
class PassAtK:
    """What a completion adds to the best of k: A_i = (E[max of subsets with i] - E[max of subsets]) / (std + eps).

    Over all subsets of k of the G completions of a prompt; std is the deviation of their maxima. For rewards of 0 and 1
    these are the analytical advantages of Pass@k training (arXiv:2508.10751): with n misses, M = 1 - C(n, k) / C(G, k)
    and s^2 = M (1 - M), a hit gets (1 - M) / s and a miss (1 - M - C(n - 1, k - 1) / C(G - 1, k - 1)) / s. Sorted
    rewards give the sums over subsets for any others (order statistics, as in arXiv:2505.15201). k = 1 is GRPO's
    z-score with squares divided by G.
    """

    k: int
    eps: float = 1e-6

    def missing(self, setting: Setting) -> Iterator[str]:
        """Groups of more than k: a subset that is the whole group compares nothing."""
        if setting.group_size <= self.k:
            yield (
                f"more than objective.k={self.k} completions per prompt for compare=pass_at_k; rollout.group_size is "
                f"{setting.group_size}. Raise it, or lower objective.k"
            )

    def __call__(self, values: Tensor, group_size: int, sizes: Tensor | None = None) -> Tensor:
        """Values [B, ...] -> advantages of their shape; exactly 0 where all subsets are worth the same."""
        if group_size <= self.k:
            raise ConfigError(f"Pass@{self.k} compares subsets of a group: rollout.group_size is {group_size}.")
        groups = group_view(values, group_size)
        ordered, order = groups.double().sort(1)
        shape = (1, group_size, *(1,) * (groups.dim() - 2))
        places, k = range(group_size), self.k

        def shares(chances: list[int], all_of_them: int) -> Tensor:
            return torch.tensor(chances, dtype=torch.float64, device=values.device).view(shape) / all_of_them

        # the largest of a subset is the one at place j in C(j, k - 1) of them, in C(j - 1, k - 2) of those with i < j
        top = shares([comb(j, k - 1) for j in places], comb(group_size, k))
        own = shares([comb(j, k - 1) for j in places], comb(group_size - 1, k - 1))
        above = shares([comb(j - 1, k - 2) if j and k > 1 else 0 for j in places], comb(group_size - 1, k - 1))
        mean = (top * ordered).sum(1, keepdim=True)
        deviation = (top * (ordered - mean).square()).sum(1, keepdim=True).sqrt()
        larger = above * ordered
        larger = larger.flip(1).cumsum(1).flip(1) - larger
        gained = (own * ordered + larger - mean) / (deviation + self.eps)
        largest = group_view(values.abs() if sizes is None else sizes, group_size).amax(1, keepdim=True)
        gained = gained.masked_fill(deviation <= ROUNDING * largest, 0)
        return torch.empty_like(gained).scatter_(1, order, gained).flatten(0, 1).to(values.dtype)


@dataclass(frozen=True)
class BestOfGroup:
    """Only the best completion counts, by how much it is ahead of the second: A = r_1 - r_2, 0 for all others.

    Leave-one-out credit for the best of the whole group (arXiv:2503.19595), verl's `grpo_passk` without its division by
    the deviation. Where two are best nobody gets anything.
    """

    def missing(self, setting: Setting) -> Iterator[str]:
        """Groups of two."""
        if setting.group_size < 2:
            yield "several completions per prompt for compare=best; rollout.group_size is 1. Set it to 2 or more"

    def __call__(self, values: Tensor, group_size: int, sizes: Tensor | None = None) -> Tensor:
        """Values [B, ...] -> advantages of their shape."""
        if group_size < 2:
            raise ConfigError("the best of a group is compared with the second: rollout.group_size is 1, set it to 2.")
        groups = group_view(values, group_size)
        (first, second), order = groups.topk(2, dim=1).values.unbind(1), groups.argmax(1, keepdim=True)
        largest = group_view(values.abs() if sizes is None else sizes, group_size).amax(1)
        ahead = (first - second).masked_fill(first - second <= ROUNDING * largest, 0)
        return torch.zeros_like(groups).scatter_(1, order, ahead[:, None]).flatten(0, 1)


@dataclass
class OutcomeOptions(GroupOptions):
    """Options of objectives that give each completion one advantage."""

    compare: Literal["all", "pass_at_k", "best"] = "all"
    """A completion with all of its group; by what it adds to the best of k of them (arXiv:2508.10751); or the best one
    with the second alone (arXiv:2503.19595)."""
    k: int = option(4, ge=1)
    """`compare=pass_at_k`: completions of which the best counts; fewer than rollout.group_size."""
    repair: bool = False
    """Put the target in the place of the last completion of groups that all earn the same without naming it (after
    ReCast, arXiv:2604.22169)."""


def outcome_credit(config: OutcomeOptions, norm: GroupNorm | None = None) -> OutcomeCredit:
    """The credit of these options; `norm` compares all of a group, by default as `ddof` and `eps` say."""
    plain = norm or GroupNorm(ddof=config.ddof, eps=config.eps)
    ways: dict[str, Comparison] = {"all": plain, "pass_at_k": PassAtK(config.k, config.eps), "best": BestOfGroup()}
    return OutcomeCredit(ways[config.compare])
