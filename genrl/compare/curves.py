"""Learning curves of a comparison: a panel per quantity, a line per row, a band over its seeds."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

Notes = dict[str, dict[int, float]]
"""What a run noted: quantity -> step -> value."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Distinct to colour-blind readers, too (Okabe and Ito)."""
DASHES = ("-", "--", "-.", ":")
TRAINING = {
    "policy/entropy": "entropy of the policy, nats",
    "policy/kl": "KL from the reference policy, nats",
    "objective/dead_groups": "dead groups",
}
MATCH = "train/match/step"
COLUMNS = 3


def draw(rows: Mapping[str, Sequence[Notes]], path: Path) -> None:
    """Draw the curves of some runs into a PNG; what no run has noted is left out.

    Args:
        rows: row -> what its runs noted, one per seed.
        path: of the picture.
    """
    drawn = panels({name for runs in rows.values() for run in runs for name in run})
    if not drawn:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = -(-len(drawn) // COLUMNS)
    figure, axes = pyplot.subplots(height, COLUMNS, figsize=(4.2 * COLUMNS, 3.1 * height), squeeze=False)
    for axis, (name, title) in zip(axes.flat, drawn.items(), strict=False):
        for number, (row, runs) in enumerate(rows.items()):
            colour, dash = look(number)
            curve = band([run[name] for run in runs if name in run])
            if curve:
                steps, means, lows, highs = zip(*curve, strict=True)
                axis.plot(steps, means, label=row, color=colour, linestyle=dash)
                axis.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimiser steps", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.axis("off")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.tight_layout(rect=(0, 0.4 / (3.1 * height), 1, 1))
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=min(len(lines), 8), fontsize=9, frameon=False)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    pyplot.close(figure)


def panels(noted: Collection[str]) -> dict[str, str]:
    """What is drawn of the quantities that runs have noted, with titles, in order.

    Example:
        >>> panels(["train/match/step1", "val/ndcg@5", "val/ndcg@10", "train/loss"])
        {'val/ndcg@10': 'validation NDCG@10', 'train/match/step1': 'match rate of step 1'}
    """
    titles = {
        "train/reward": "reward",
        **_largest(noted, "val/ndcg@", "validation NDCG@"),
        **_largest(noted, "val/cold_recall@", "validation cold recall@"),
        **TRAINING,
    }
    matches = sorted((name for name in noted if name.startswith(MATCH)), key=lambda name: int(name[len(MATCH) :]))
    titles |= {name: f"match rate of step {name[len(MATCH) :]}" for name in matches}
    return {name: title for name, title in titles.items() if name in noted}


def look(number: int) -> tuple[str, str]:
    """Colour and dash of a row; as many rows as there are pairs of both look different.

    Example:
        >>> look(0), look(8)
        (('#0072B2', '-'), ('#0072B2', '--'))
    """
    return COLOURS[number % len(COLOURS)], DASHES[(number + number // len(COLOURS)) % len(DASHES)]


def read_notes(folder: Path) -> Notes:
    """What a run noted; values that are not finite (a mean over no rows) are left out."""
    path = folder / "history.jsonl"
    found: Notes = defaultdict(dict)
    for line in path.read_text().splitlines() if path.exists() else ():
        note = json.loads(line)
        step = note.pop("step")
        for name, value in note.items():
            if math.isfinite(value):
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


def _largest(noted: Collection[str], prefix: str, title: str) -> dict[str, str]:
    """The quantity `prefix<K>` of the largest K."""
    cuts = [int(name[len(prefix) :]) for name in noted if name.startswith(prefix)]
    return {f"{prefix}{max(cuts)}": f"{title}{max(cuts)}"} if cuts else {}
