"""What tests of planners of supervised steps share."""

from __future__ import annotations

from typing import TypeVar

from genrl.prompts.packing import Planner

PlannerT = TypeVar("PlannerT", bound=Planner)  # type: ignore[type-arg]


def ranked(batches: PlannerT, rank: int, world: int) -> PlannerT:
    """The same steps for one of several processes."""
    batches.rank, batches.world = rank, world
    return batches
