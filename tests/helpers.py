"""The one comparison of the suite, and files of lines."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}


def assert_same(actual: object, expected: object, tolerance: float | None = None) -> None:
    """Fail unless both have one shape and no element differs by more than an absolute tolerance.

    Args:
        actual: tensor, number or nested list.
        expected: the same.
        tolerance: by default 1e-9 where the actual value is float64, 1e-5 where it is float32, exact for whole numbers.
    """
    found, wanted = _tensor(actual), _tensor(expected)
    assert found.shape == wanted.shape, f"shape {list(found.shape)}, expected {list(wanted.shape)}"
    allowed = TOLERANCES.get(found.dtype, 0.0) if tolerance is None else tolerance
    found, wanted = found.detach().to("cpu", torch.float64), wanted.detach().to("cpu", torch.float64)
    apart = torch.where(found == wanted, 0.0, (found - wanted).abs())  # equal infinities are equal
    wrong = ~(apart <= allowed)
    if wrong.any():
        place = tuple(int(index) for index in wrong.nonzero()[0])
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements differ by more than {allowed:g} "
            f"(largest {float(apart.max()):g}); first at {place}: "
            f"{float(found[place])!r}, expected {float(wanted[place])!r}"
        )


def _tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (bool, int, float, Sequence)):
        whole = not torch.tensor(value).is_floating_point()
        return torch.tensor(value, dtype=None if whole else torch.float64)
    raise TypeError(f"cannot compare a {type(value).__name__}")


def write_lines(path: Path, *lines: object) -> Path:
    """Write a file of lines, those that are no text as JSON."""
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path
