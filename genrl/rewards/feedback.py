"""Reward for what users did with the items that they got: click, like, play time."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genrl.batches import Completions, Targets
from genrl.errors import ConfigError, suggest
from genrl.metrics.functional import first_occurrences
from genrl.options import option
from genrl.rewards.base import REWARDS, Reward, RewardContext


@REWARDS.register("feedback", title="what the log says of the items that were named")
class Feedback(Reward):
    """An item that is a target gets what a feedback column says of that target; every other item gets 0.

    value[b, n] = min(column[b, m] / scale, limit), or 1[column[b, m] > threshold], for the target m that item n is. An
    item that the completion names again gets nothing, nor does one of which the log says nothing. Several behaviours
    are several of these under names of their own: `rewards.like={reward: feedback, column: is_like}`. What should not
    happen (hate, dislike) has a negative weight.
    """

    level: ClassVar = "item"

    @dataclass(kw_only=True)
    class Config:
        """Options of feedback."""

        weight: float = 1.0
        """Factor of this reward in the sum; below 0 for what should not happen."""
        column: str = option(says="a column of data.columns.feedback, e.g. click")
        """Column of the interactions, one of data.columns.feedback."""
        threshold: float | None = None
        """Pay 1 for more than this (in the column's own unit), else 0; null: pay the amount, by scale and limit."""
        scale: float = option(1.0, gt=0)
        """An amount is divided by this, e.g. 60000 for milliseconds in minutes."""
        limit: float | None = None
        """Largest amount, after it is divided; null: none."""

    def check(self, steps: int, context: RewardContext, items: int = 1) -> None:
        config = self.config
        if config.threshold is not None and (config.scale != 1 or config.limit is not None):
            raise ConfigError(
                f"reward 'feedback' of column {config.column!r}: threshold={config.threshold:g} pays 1 or 0, so scale "
                f"and limit have no effect. Leave these out, or threshold, to be paid the amount."
            )
        if config.column not in context.feedback:
            raise ConfigError(
                f"reward 'feedback': column {config.column!r} is not kept beside the interactions."
                f"{suggest(config.column, context.feedback)} Kept: {', '.join(context.feedback) or 'none'}. "
                f"Name it in data.columns.feedback (with data.source=files)."
            )

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        amounts = targets.feedback[self.config.column].float()
        known = ~amounts.isnan() & first_occurrences(targets.items)
        paid = self._paid(amounts).masked_fill(~known, 0)
        named = first_occurrences(completions.items)
        same = (completions.items[:, :, None] == targets.items[:, None, :]) & named[:, :, None]
        return (same * paid[:, None, :]).sum(2)

    def _paid(self, amounts: Tensor) -> Tensor:
        if self.config.threshold is not None:
            return (amounts > self.config.threshold).float()
        return (amounts / self.config.scale).clamp(max=torch.inf if self.config.limit is None else self.config.limit)
