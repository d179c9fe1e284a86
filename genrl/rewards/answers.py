"""What a reward may return: finite numbers of its shape, one per completion, step or item."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrl.errors import ComponentError
from genrl.foreign import described

UNITS = {"outcome": "completion", "step": "completion and step", "item": "completion and item"}


def as_values(value: Any, name: str, level: str, shape: tuple[int, ...], device: torch.device) -> Tensor:  # noqa: ANN401
    """What a reward returned as float32 on the rollout's device.

    A tensor must be that already: one of another dtype or device is a mistake that costs precision or time in each
    step. NumPy arrays and nested lists or tuples of numbers or truth values, which have neither, are converted if they
    have the shape.

    Raises:
        ComponentError: naming the reward, what was expected and what came.
    """
    found = value if isinstance(value, Tensor) else _numbers(value)
    if found is None or tuple(found.shape) != shape:
        raise ComponentError(
            f"reward {name!r} must return {list(shape)} numbers, one per {UNITS[level]}, as a tensor of float32 on "
            f"{device} (or a list or NumPy array of that shape); it returned {described(value)}."
        )
    if found is not value:
        return found.to(device)
    if found.dtype != torch.float32 or found.device != device:
        raise ComponentError(
            f"reward {name!r} must return float32 on {device}; it returned {described(value)}. Say "
            f".to(completions.items.device, torch.float32) at its end, or make its tensors there."
        )
    return found


def _numbers(value: Any) -> Tensor | None:  # noqa: ANN401
    """An array, or nested lists, of real numbers as float32; None if it is anything else."""
    if not isinstance(value, (np.ndarray, list, tuple)):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths, tensors that NumPy cannot read
        return None
    if array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
        return torch.from_numpy(array.astype(np.float32))
