"""Sized streams of optimiser steps: what a step sees depends on the seed and the step number alone."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from genrl.errors import ConfigError
from genrl.ops import seed_of

BatchT = TypeVar("BatchT")


class StepStream(Generic[BatchT]):
    """The batches of one round of optimiser steps, made on demand.

    A stream with a length is not prefetched by Lightning, so a rollout is drawn after the update before it, never
    earlier. Rounds end, with a validation and a checkpoint, at multiples of `round_steps`; the next one (or a resumed
    run) goes on at the trainer's step, wherever that is. A round that is told to `end` does so behind the step at work,
    without its validation. Steps are the optimiser's: `make` gives the `per_step`
    micro-batches of one, `position` tells the current one.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[BatchT]],
        position: Callable[[], int],
        round_steps: int,
        max_steps: int,
        per_step: int = 1,
    ) -> None:
        self.make = make
        self.position = position
        self.round_steps = round_steps
        self.max_steps = max_steps
        self.per_step = per_step
        self._ended = False

    def __len__(self) -> int:
        return len(self._steps) * self.per_step

    def __iter__(self) -> Iterator[BatchT]:
        for step in self._steps:
            if self._ended:
                return
            yield from self.make(step)

    def end(self) -> None:
        """Make no further steps: the round ends here."""
        self._ended = True

    @property
    def _steps(self) -> range:
        """The steps from now to the end of the round."""
        start = self.position()
        return range(start, min((start // self.round_steps + 1) * self.round_steps, self.max_steps))


class PromptOrder:
    """Which prompts each rollout uses: passes over all of them, each in a new seeded order.

    Args:
        positions: [n] target positions that may serve as prompts.
        count: prompts per rollout, over all ranks.
        seed: of the order.

    Raises:
        ConfigError: if there are fewer prompts than one rollout takes.
    """

    def __init__(self, positions: Tensor, count: int, seed: int) -> None:
        if positions.numel() < count:
            raise ConfigError(
                f"rollout.prompts={count}, but the data set has only {positions.numel()} RL prompts. "
                f"Lower rollout.prompts or raise data.rl_holdout."
            )
        self.positions = positions
        self.count = count
        self.seed = seed
        self.per_pass = positions.numel() // count

    def at(self, index: int, attempt: int = 0) -> Tensor:
        """Positions [count] of rollout `index`; `attempt` > 0 gives other ones, for dynamic sampling."""
        if attempt:
            order = self._shuffle(index, attempt)
            return self.positions[order[: self.count]]
        epoch, within = divmod(index, self.per_pass)
        order = self._shuffle(epoch, 0)
        return self.positions[order[within * self.count : (within + 1) * self.count]]

    def _shuffle(self, *key: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, *key))
        return torch.randperm(self.positions.numel(), generator=generator)
