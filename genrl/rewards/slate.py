"""Rewards for lists of items: how many are right and where they stand, and what the list is like."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genrl.batches import Completions, Targets
from genrl.errors import ConfigError, LayoutError
from genrl.metrics.functional import first_occurrences, seen
from genrl.objectives.sage import category_entropy
from genrl.rewards.base import REWARDS, Reward, RewardContext


def distinct_hits(completions: Completions, targets: Targets) -> Tensor:
    """Whether each item [B, N] is one of its row's targets and stands in the completion for the first time."""
    return seen(completions.items, targets.items) & first_occurrences(completions.items)


@dataclass
class Weight:
    """Options of a reward that has no others."""

    weight: float = 1.0
    """Factor of this reward in the sum."""


@REWARDS.register("slate_hit", title="whether the list holds a target")
class SlateHit(Reward):
    """1 if any item of the completion is a target, else 0: Pass@N of the list."""

    level: ClassVar = "outcome"
    Config = Weight

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        return distinct_hits(completions, targets).any(1).float()


@REWARDS.register("slate_ndcg", title="targets of the list, discounted by their places")
class SlateNDCG(Reward):
    """NDCG of the list as it was written: sum over hits at place n (from 0) of 1/log2(n + 2), over the best possible.

    The best possible has all of the row's M targets first: sum over n < min(M, N) of 1/log2(n + 2). Every target is
    worth the same. An item that is repeated, or no item, keeps its place and gets nothing.
    """

    level: ClassVar = "outcome"
    Config = Weight

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        places = torch.arange(completions.items.shape[1], device=completions.items.device)
        discounts = 1 / torch.log2(places.float() + 2)
        gained = (distinct_hits(completions, targets) * discounts).sum(1)
        count = first_occurrences(targets.items).sum(1, keepdim=True)
        best = ((places < count) * discounts).sum(1)
        return torch.where(best > 0, gained / best, 0.0)


@REWARDS.register("validity", title="places of the list that name an item, and none twice")
class Validity(Reward):
    """1 at each place that holds an item of the catalogue for the first time, else 0."""

    level: ClassVar = "item"
    Config = Weight

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        return first_occurrences(completions.items).float()


@REWARDS.register("diversity", title="entropy of the categories in the list")
class DiversityReward(Reward):
    """Shannon entropy of the categories of the completion's N items over ln N, so in [0, 1]; unknown ones are left out.

    The same entropy is SAGE's H (there in nats), which is no reward: it decides how far bad slates are pushed.
    """

    level: ClassVar = "outcome"

    @dataclass
    class Config:
        """Options of diversity."""

        weight: float = 1.0
        """Factor of this reward in the sum."""
        category: str | None = None
        """Item column whose values are counted, one of data.columns.attributes; null: data.columns.category."""

    def check(self, steps: int, context: RewardContext, items: int = 1) -> None:
        if items == 1:
            raise LayoutError(
                "diversity counts the categories of a list, and this layout has one item per completion. Drop it with "
                "rewards.diversity=null, or use a layout of several items."
            )
        if not bool((context.level(self.config.category) >= 0).any()):
            raise ConfigError(
                "reward 'diversity' needs item categories; the item table has none. Name their column in "
                "data.columns.category, or another one in rewards.diversity.category."
            )

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        items = completions.items
        values = context.level(self.config.category)
        categories = torch.where(first_occurrences(items), values[items.clamp(min=0)], -1)
        return category_entropy(categories) / math.log(max(2, items.shape[1]))


@REWARDS.register("novelty", title="items that few users know")
class Novelty(Reward):
    """1 - log(1 + count) / log(1 + largest count) of each item's training interactions, in [0, 1]; 0 for no item.

    It pays for rare items whether the user wants them or not, so give it a small weight, or `cold_hit` in its place.
    """

    level: ClassVar = "item"
    Config = Weight

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        known = context.popularity.float().log1p()
        rarity = 1 - known / known.max().clamp(min=torch.finfo(known.dtype).tiny)
        items = completions.items
        return torch.where(first_occurrences(items), rarity[items.clamp(min=0)], 0.0)


@REWARDS.register("cold_hit", title="targets that are cold items")
class ColdHit(Reward):
    """1 for each item that is a target and cold (`data.cold_fraction`), else 0."""

    level: ClassVar = "item"
    Config = Weight

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        return (distinct_hits(completions, targets) & context.cold[completions.items.clamp(min=0)]).float()
