"""Optimiser steps whose loss or gradient is NaN or infinite: passed over without a trace, counted, and told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genrl.files import save_weights, write_json


class Skips:
    """Counts the steps of a stage that were passed over, and holds the passes of the step that is being made.

    Args:
        most: so many in a row end the stage.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.row = 0
        self._passes: list[tuple[Any, Tensor]] = []

    def watch(self, loss: Tensor, batch: Any) -> Tensor:  # noqa: ANN401 (any frozen batch)
        """The loss of one pass; its gradient becomes NaN where the loss itself is no number.

        So the norm of the gradient tells of both, on all ranks alike, and nothing has to wait for the device here. A
        finite loss is multiplied by 1, which leaves its bits and those of its gradient as they are.
        """
        value = loss.detach()
        self._passes.append((batch, value))
        return loss * (1 + 0 * value)  # 0 times infinity is NaN, too

    def passes(self) -> list[tuple[Any, Tensor]]:
        """Batch and loss of each pass of the step; then begin anew."""
        found, self._passes = self._passes, []
        return found

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"total": self.total, "row": self.row}

    def restore(self, state: Mapping[str, int]) -> None:
        """From a checkpoint."""
        self.total, self.row = state.get("total", 0), state.get("row", 0)


def save_batch(folder: Path, name: str, batch: Any, about: Mapping[str, Any]) -> Path:  # noqa: ANN401
    """Write a batch as NAME.safetensors, and what is known of it as NAME.json beside; returns the former."""
    path = folder / f"{name}.safetensors"
    save_weights({key: value.detach().cpu().clone().contiguous() for key, value in flatten(batch).items()}, path)
    write_json(path.with_suffix(".json"), {**about, "batch": path.name})
    return path


def flatten(batch: Any, prefix: str = "") -> dict[str, Tensor]:  # noqa: ANN401
    """All tensors of nested batches by dotted name."""
    if isinstance(batch, Tensor):
        return {prefix: batch}
    items: dict[str, Any] = {}
    if is_dataclass(batch):
        items = {field.name: getattr(batch, field.name) for field in fields(batch)}
    elif isinstance(batch, Mapping):
        items = dict(batch)
    found: dict[str, Tensor] = {}
    for name, value in items.items():
        found |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return found
