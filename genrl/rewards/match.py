"""Rewards that compare what was generated with what the user really chose."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Targets
from genrl.errors import LayoutError
from genrl.metrics.functional import first_occurrences, seen
from genrl.ops import group_view
from genrl.options import option
from genrl.rewards.base import REWARDS, Reward, RewardContext

Level = Literal["item", "sid"]


def sid_hits(items: Tensor, targets: Tensor, context: RewardContext) -> Tensor:
    """Whether each item has the same SID as one of its row's targets (the comparison of SID strings in MiniOneRec)."""
    same = (context.codes_of(items).unsqueeze(2) == context.codes_of(targets).unsqueeze(1)).all(dim=3)
    return (same & (items >= 0).unsqueeze(2) & (targets >= 0).unsqueeze(1)).any(dim=2)


def _hits(items: Tensor, targets: Tensor, context: RewardContext, level: Level) -> Tensor:
    return seen(items, targets) if level == "item" else sid_hits(items, targets, context)


def code_matches(choices: Tensor, targets: Tensor, context: RewardContext, prefix: bool) -> Tensor:
    """Whether the code chosen at each step [B, K] is the code of that level of one of the targets [B, M].

    m[b, k] = 1[choice[b, k] = code_k(target[b])]; with `prefix`, the product of m[b, 0..k]. A choice of -1 never does.
    """
    same = (choices.unsqueeze(1) == context.codes_of(targets)) & (choices >= 0).unsqueeze(1)
    if prefix:
        same = same.to(torch.int8).cumprod(dim=2).bool()
    return same.any(dim=1)


def rank_penalties(group_size: int, device: torch.device | str = "cpu") -> Tensor:
    """What a miss at rank i = 0..G-1 of a group costs: -(1/log2(i+2)) / sum_j 1/log2(j+2); they add up to -1."""
    gains = 1 / torch.log2(torch.arange(group_size, device=device, dtype=torch.float32) + 2)
    return -gains / gains.sum()


@REWARDS.register("exact_match", title="the item the user chose")
class ExactMatch(Reward):
    """1 for each item of the completion that is a target, the first time it is named, else 0.

    With one item per completion that is whether the completion names a target; the sum over a slate counts its hits.

    Where items share a SID (`sid.collisions: keep`), `completions.items` holds the most popular item of the SID,
    of those that a candidate pool (`data.pool`) leaves.
    `level: item` pays for that item alone; `level: sid` pays whenever the SID is a target's, in full or divided by the
    number of items that share it. Without shared SIDs all settings agree.
    """

    level = "item"

    @dataclass
    class Config:
        """Options of exact_match."""

        weight: float = 1.0
        """Factor of this reward in the sum."""
        level: Literal["item", "sid"] = "item"
        """Compare catalogue items, or their SIDs."""
        shared: Literal["full", "divided"] = "full"
        """`level: sid`: pay 1 for a SID that n items share, or 1/n (the chance that a random one of them is meant)."""

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        items = completions.items
        hits = (_hits(items, targets.items, context, self.config.level) & first_occurrences(items)).float()
        if self.config.level == "sid" and self.config.shared == "divided":
            hits = hits / context.sharing[items]  # -1 is the last row, "no item"
        return hits


def level_shares(items: Tensor, targets: Tensor, context: RewardContext, prefix: bool, levels: int) -> Tensor:
    """Share of the first SID levels on which each item [B, N] agrees with the target [B, M] that it agrees with most.

    s[b, n] = max_m 1/levels sum_k 1[code_k(item[b, n]) = code_k(target[b, m])]; with `prefix` the sum ends at the first
    level that differs. "No item" (-1) agrees with none, nor does an item that is named again. float32 [B, N] in [0, 1].
    """
    there = ((items >= 0) & first_occurrences(items))[:, :, None, None] & (targets >= 0)[:, None, :, None]
    same = (context.codes_of(items)[:, :, None] == context.codes_of(targets)[:, None])[..., :levels] & there
    if prefix:
        same = same.to(torch.int8).cumprod(dim=3).bool()
    return same.float().mean(3).amax(2)


class _CodeMatch(Reward):
    """What the two step rewards have in common.

    On a slate, where a step is an item, step n gets the share of its item's levels that match.
    """

    level = "step"
    name: ClassVar[str]
    prefix: ClassVar[bool]

    @dataclass
    class Config:
        """Options of level_match and prefix_match."""

        weight: float = 1.0
        """Factor of this reward in the sum."""
        levels: int = option(0, ge=0)
        """Pay for the first so many SID levels only; 0: all, for level_match without the one that tells colliding items
        apart."""

    def check(self, steps: int, context: RewardContext, items: int = 1) -> None:
        if steps != (context.levels if items == 1 else items):
            raise LayoutError(
                f"{self.name} compares codes level by level: the layout has {steps} steps and SIDs have "
                f"{context.levels} levels. Drop it with rewards.{self.name}=null (exact_match pays for whole items), "
                f"or use a layout with one step per SID level (sid), or a slate of several items (layout.length=2 or "
                f"more)."
            )

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        items = completions.items
        self.check(completions.num_steps, context, items.shape[1])
        without = context.collision_level and not self.prefix
        levels = self.config.levels or context.levels - without
        if items.shape[1] > 1:
            return level_shares(items, targets.items, context, self.prefix, levels)
        values = code_matches(completions.codes, targets.items, context, self.prefix).float()
        values[:, levels:] = 0
        return values


@REWARDS.register("level_match", title="per-level SID match", paper="2605.17648")
class LevelMatch(_CodeMatch):
    """Step k gets 1 if its code is the target's code of level k, whatever the other levels are.

    m[i, k] = 1[s_i^(k) = s_target^(k)]   (SAPO, arXiv:2605.17648). Codes of residual quantisation mean something only
    under the codes above them; `prefix_match` is the reward that knows this. A last level that only tells colliding
    items apart is no match: most items have its first code, whatever they are.
    """

    name, prefix = "level_match", False


@REWARDS.register("prefix_match", title="SID prefix match")
class PrefixMatch(_CodeMatch):
    """Step k gets 1 if the codes of levels 0..k all are the target's: the running product of level_match."""

    name, prefix = "prefix_match", True


@REWARDS.register("ndcg_rank", title="rank penalty inside the group (MiniOneRec)")
class NDCGRank(Reward):
    """Penalises misses by their rank in the group, in groups with a hit.

    If any of the G completions hits, a hit gets 0 and a miss at rank i (0-based, hits are counted) gets
    -(1/log2(i+2)) / sum_j 1/log2(j+2); without a hit everyone gets 0. MiniOneRec's "ranking" reward adds this to
    exact_match. There the group is a beam search, so that its order is the rank; here the rank is by probability.
    It ranks whole completions: a slate hits if any of its items does. `slate_ndcg` ranks the items within.
    """

    level = "outcome"

    @dataclass
    class Config:
        """Options of ndcg_rank."""

        weight: float = 1.0
        """Factor of this reward in the sum."""
        order: Literal["probability", "given"] = "probability"
        """Rank by the completion's log-probability (ties as given), or by place in the group (beams: best first)."""
        level: Literal["item", "sid"] = "item"
        """A hit is the item, or any item of the same SID."""

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        size = completions.group_size
        hits = group_view(_hits(completions.items, targets.items, context, self.config.level).any(dim=1), size)
        penalties = rank_penalties(size, hits.device).expand(hits.shape)
        if self.config.order == "probability":
            logps = group_view((completions.logps.float() * completions.chosen).sum(dim=1), size)
            ranks = logps.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            penalties = penalties.gather(1, ranks)
        counts = hits.any(dim=1, keepdim=True) & ~hits
        return torch.where(counts, penalties, 0.0).flatten()
