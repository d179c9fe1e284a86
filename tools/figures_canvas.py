"""What the figures of the papers have in common: colours, dashes, and how a picture is saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib

from genrl.compare.curves import COLOURS, DASHES

matplotlib.use("Agg")

STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": DASHES[place % len(DASHES)]} for place, colour in enumerate(COLOURS)
)
"""Colour and dashes of each line in turn; both differ, so that the picture can be read in grey."""


def save(figure: Any, path: Path) -> None:  # noqa: ANN401 (a figure of matplotlib)
    """Write a PNG in one move, without metadata on the machine, and close the figure."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
    temporary.replace(path)
    pyplot.close(figure)
