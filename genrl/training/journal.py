"""What a stage gathers between two optimiser steps and logs at the end of each."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from genrl.ops import fetched, world_size

Value = Tensor | float


class Journal:
    """Gathers scalars by tag, from as many micro-batches as a step has, and makes one value of each."""

    def __init__(self) -> None:
        self._values: dict[str, list[Value]] = defaultdict(list)

    def add(self, *values: Mapping[str, Value]) -> None:
        """Gather scalars: tag -> value."""
        for tag, value in (pair for part in values for pair in part.items()):
            self._values[tag].append(value)

    def fetch(self, *beside: Tensor) -> list[Tensor]:
        """Bring what was gathered to the host, and scalars beside it, by one copy; returns the latter.

        It is the one place of a step where the host has to wait for the device.
        """
        held = [value for values in self._values.values() for value in values if isinstance(value, Tensor)]
        found = iter(fetched([*beside, *held]))
        own = [next(found) for _ in beside]
        for values in self._values.values():
            values[:] = [next(found) if isinstance(value, Tensor) else value for value in values]
        return own

    @contextmanager
    def timed(self, tag: str) -> Iterator[None]:
        """Gather how many seconds the block takes."""
        started = time.perf_counter()
        yield
        self.add({tag: time.perf_counter() - started})

    def own(self) -> dict[str, float]:
        """As `close`, of this rank alone."""
        self.fetch()
        own = {tag: _summary(tag, values) for tag, values in self._values.items()}
        self._values.clear()
        return own

    def close(self) -> dict[str, float]:
        """Tag -> mean over all that was gathered, or the largest for tags that end in `_max`; then begin anew.

        Over all ranks, together; a rank without any live group lacks some of the values.
        """
        own = self.own()
        if world_size() == 1:
            return own
        everyone: list[dict[str, float]] = [{} for _ in range(world_size())]
        torch.distributed.all_gather_object(everyone, own)
        tags = dict.fromkeys(tag for part in everyone for tag in part)
        return {tag: _summary(tag, [part[tag] for part in everyone if tag in part]) for tag in tags}


def _summary(tag: str, values: list[Value]) -> float:
    found = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
    return float(found.max() if tag.endswith("_max") else found.mean())
