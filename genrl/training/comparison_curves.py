"""Learning curves of a comparison: a panel per quantity, a line per row, a band over its seeds."""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Distinct to colour-blind readers, too (Okabe and Ito)."""
DASHES = ("-", "--", "-.", ":")
PANELS = {
    "train/reward": "reward",
    "policy/entropy": "entropy of the policy, nats",
    "objective/dead_groups": "dead groups",
}
"""Beside validation NDCG."""


def draw(rows: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Draw the curves of some runs into a PNG; what no run has noted is left out.

    Args:
        rows: row -> its run folders, one per seed.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    notes = {row: [read_notes(folder) for folder in folders] for row, folders in rows.items()}
    noted = {name for runs in notes.values() for run in runs for name in run}
    validation = max(
        (name for name in noted if name.startswith("val/ndcg@")), key=lambda name: int(name[9:]), default=""
    )
    panels = {validation: f"validation NDCG{validation[8:]}", **PANELS}
    drawn = [name for name in panels if name in noted]
    if not drawn:
        return
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(4.2 * len(drawn), 3.4), squeeze=False)
    for axis, name in zip(axes.flat, drawn, strict=True):
        for (row, runs), colour, dash in zip(notes.items(), cycle(COLOURS), cycle(DASHES), strict=False):
            curve = band([run[name] for run in runs if name in run])
            if curve:
                steps, means, lows, highs = zip(*curve, strict=True)
                axis.plot(steps, means, label=row, color=colour, linestyle=dash)
                axis.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(panels[name], fontsize=10)
        axis.set_xlabel("optimiser steps")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    pyplot.close(figure)


def read_notes(folder: Path) -> dict[str, dict[int, float]]:
    """What a run noted: quantity -> step -> value."""
    path = folder / "history.jsonl"
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in path.read_text().splitlines() if path.exists() else ():
        note = json.loads(line)
        step = note.pop("step")
        for name, value in note.items():
            found[name][step] = value
    return dict(found)


def band(curves: Sequence[Mapping[int, float]]) -> list[tuple[int, float, float, float]]:
    """Mean, least and largest value over seeds at the steps that all seeds have.

    Example:
        >>> band([{0: 1.0, 5: 2.0}, {0: 3.0}])
        [(0, 2.0, 1.0, 3.0)]
    """
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    found = []
    for step in steps:
        values = [curve[step] for curve in curves]
        found.append((step, statistics.mean(values), min(values), max(values)))
    return found
