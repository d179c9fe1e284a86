"""Figures from finished runs: what changed while they trained, and what is lost without each part of a method."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from genrl.compare.finished import Finished, found_rows
from genrl.errors import ConfigError, DataError, suggest
from genrl.metrics.comparison import seed_interval
from genrl.plots import LIGHT, add_legend, band, curve_grid, look, looks, read_notes, save, style

Curve = dict[int, float]
DYNAMICS = {
    "rollout/cold_share": "items of completions that are cold, share",
    "train/reward/cold_hit": "cold targets that a completion names, mean",
    "val/cold_recall@": "validation Cold-Recall",
    "val/entropy@": "entropy of categories in a list, bits",
    "policy/entropy": "entropy of the policy, nats",
}
"""Quantity that runs note -> what it is; of those that end in `@`, the one at the largest K is drawn."""
METRICS = {"ndcg": "NDCG", "recall": "Recall", "cold_recall": "Cold-Recall", "entropy": "Entropy"}
"""Metric -> how the ablation names it."""
HATCHES = ("", "///", "...", "\\\\\\", "xxx")


def find_rows(folder: Path, names: Sequence[str] = ()) -> dict[str, list[Finished]]:
    """Finished runs of an experiment by name (none: all), one per seed; refuses what is not there."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the folder of an experiment, e.g. runs/toy.")
    rows = found_rows(folder, "rl")
    if not rows:
        raise DataError(f"{folder}: no run of stage rl is finished there. Give the folder of an experiment, not a run.")
    for name in names:
        if name not in rows:
            runs = ", ".join(rows)
            raise ConfigError(f"{folder}: no finished run is named {name}.{suggest(name, rows)} Runs: {runs}.")
    return {name: rows[name] for name in names or rows}


def noted_curves(
    rows: Mapping[str, Sequence[Finished]], quantities: Sequence[str] = tuple(DYNAMICS)
) -> dict[str, dict[str, list[Curve]]]:
    """Curves of the quantities that runs noted, one at least: quantity -> row -> one curve per seed."""
    notes = {row: [read_notes(run.folder) for run in runs] for row, runs in rows.items()}
    known = {name for runs in notes.values() for run in runs for name in run}
    found = {}
    for wanted in quantities:
        tops = {int(top or 0): name for name in known for head, at, top in [name.partition("@")] if head + at == wanted}
        if tops:
            name = tops[max(tops)]
            curves = {row: [run[name] for run in runs if name in run] for row, runs in notes.items()}
            found[name] = {row: seeds for row, seeds in curves.items() if seeds}
    if not found:
        raise DataError(f"the runs noted none of {', '.join(quantities)}, so there is nothing to draw.")
    return found


def smoothed(curve: Curve, width: int) -> Curve:
    """Mean of each value and those before it, `width` in all; fewer at the start.

    Example:
        >>> smoothed({0: 1.0, 5: 3.0, 10: 5.0}, 2)
        {0: 1.0, 5: 2.0, 10: 4.0}
    """
    steps = sorted(curve)
    windows = (steps[max(0, stop - width) : stop] for stop in range(1, len(steps) + 1))
    return {window[-1]: statistics.fmean(curve[step] for step in window) for window in windows}


def draw_dynamics(
    rows: Mapping[str, Sequence[Finished]], path: Path, smooth: int = 1, quantities: Sequence[str] = ()
) -> None:
    """Draw a panel per quantity (or those of `DYNAMICS`) with curves of the rows; validations are not smoothed."""
    panels = {}
    for name, curves in noted_curves(rows, quantities or tuple(DYNAMICS)).items():
        head, at, top = name.partition("@")
        width = 1 if name.startswith("val/") else smooth
        title = DYNAMICS.get(head + at, head) + (f" (first {top} items)" if at else "")
        panels[title] = {row: band([smoothed(curve, width) for curve in seeds]) for row, seeds in curves.items()}
    save(curve_grid(panels, looks(rows), columns=2), path, dpi=150)


def relative_metrics(
    rows: Mapping[str, Sequence[Finished]], full: str, split: str, kind: str
) -> dict[str, dict[str, list[float]]]:
    """Metrics at the largest K over the mean of the full method: metric -> row -> one number per seed.

    A metric that is 0 with the full method, or has no rows there, holds nothing; not all may be so.
    """
    scores = {row: [run.scores(split)[kind] for run in runs] for row, runs in rows.items()}
    top = max(int(name.partition("@")[2]) for name in scores[full][0] if name.startswith("ndcg@"))
    found = {}
    for metric, title in METRICS.items():
        name = f"{metric}@{top}"
        values = {row: [one[name] for one in seeds if one.get(name) is not None] for row, seeds in scores.items()}
        whole = statistics.fmean(values[full] or [0.0])
        shares = {row: [value / whole for value in seeds] for row, seeds in values.items()} if whole else {}
        found[f"{title}@{top}"] = shares
    if not any(found.values()):
        raise DataError(f"no metric of {full} on {split} ({kind}) is above 0, so nothing can be relative to it.")
    return found


def limits(bars: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Least and largest value that must be seen: 1, all seeds, and intervals of means over three seeds or more.

    The interval of two seeds is so wide that it would hide everything else; it leaves the frame.

    Example:
        >>> limits([[0.5, 1.25]])
        (0.5, 1.25)
    """
    seen = [1.0, *(value for seeds in bars for value in seeds)]
    for seeds in bars:
        if len(seeds) > 2:
            interval = seed_interval(torch.tensor(seeds, dtype=torch.float64))
            seen += [interval.low, interval.high]
    return min(seen), max(seen)


def draw_ablation(rows: Mapping[str, Sequence[Finished]], full: str, path: Path, split: str, kind: str) -> None:
    """Draw bars from 1, the full method: the mean over seeds, a dot per seed, whiskers for the interval of the mean."""
    found = relative_metrics(rows, full, split, kind)
    with style():
        figure = Figure(figsize=(2.1 * len(found) + 1.5, 4.2), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / len(rows)
        for number, (row, hatch) in enumerate(zip(rows, cycle(HATCHES), strict=False)):
            colour = LIGHT[look(number).colour]
            for place, values in enumerate(found.values()):
                if values.get(row):
                    centre = place + (number - (len(rows) - 1) / 2) * width
                    _bar(axis, centre, width * 0.9, values[row], color=colour, hatch=hatch, label=row)
        low, high = limits([seeds for values in found.values() for seeds in values.values() if seeds])
        axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axis.axhline(1, color=LIGHT["ink"], linewidth=1)
        names = [name if values else f"{name}\n(0 or no rows)" for name, values in found.items()]
        axis.set_xticks(range(len(found)), names)
        axis.set_ylabel(f"{split} ({kind}) relative to {full}")
        axis.set_title("bars: mean over seeds; dots: seeds; whiskers: 95% interval of the mean", fontsize=9)
        add_legend(figure, columns=4)
    save(figure, path, dpi=150)


def _bar(axis: Axes, place: float, width: float, values: Sequence[float], **options: Any) -> None:  # noqa: ANN401
    """One bar from 1 with its seeds and, if there are several, the interval of their mean."""
    interval = seed_interval(torch.tensor(values, dtype=torch.float64))
    axis.bar(place, interval.mean - 1, width, bottom=1, alpha=0.55, **options)
    axis.plot([place] * len(values), values, "o", color="black", markersize=3, zorder=3)
    if interval.has_width:
        axis.errorbar(place, interval.mean, interval.high - interval.mean, color="black", capsize=3, linewidth=1.2)
