"""What a stage gathers between two optimiser steps and logs at the end of each."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from genrl.ops import world_size

Value = Tensor | float


class Journal:
    """Gathers scalars by tag, from as many micro-batches as a step has, and makes one value of each."""

    def __init__(self) -> None:
        self._values: dict[str, list[Value]] = defaultdict(list)

    def add(self, *values: Mapping[str, Value]) -> None:
        """Gather scalars: tag -> value."""
        for tag, value in (pair for part in values for pair in part.items()):
            self._values[tag].append(value)

    @contextmanager
    def timed(self, tag: str) -> Iterator[None]:
        """Gather how many seconds the block takes."""
        started = time.perf_counter()
        yield
        self.add({tag: time.perf_counter() - started})

    def close(self) -> dict[str, float]:
        """Tag -> mean over all that was gathered, or the largest for tags that end in `_max`; then begin anew.

        Over all ranks, together; a rank without any live group lacks some of the values.
        """
        own = {tag: _summary(tag, values) for tag, values in self._values.items()}
        self._values.clear()
        if world_size() == 1:
            return own
        everyone: list[dict[str, float]] = [{} for _ in range(world_size())]
        torch.distributed.all_gather_object(everyone, own)
        tags = dict.fromkeys(tag for part in everyone for tag in part)
        return {tag: _summary(tag, [part[tag] for part in everyone if tag in part]) for tag in tags}


def _summary(tag: str, values: list[Value]) -> float:
    found = torch.stack([torch.as_tensor(value, dtype=torch.float32).cpu() for value in values])
    return float(found.max() if tag.endswith("_max") else found.mean())
