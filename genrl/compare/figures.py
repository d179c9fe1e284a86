"""Figures of a comparison's page: learning curves, effects with intervals, a scatter plot with labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from genrl.compare.record import Difference
from genrl.compare.verdict import direction
from genrl.metrics.comparison import signed
from genrl.plots import HEIGHT, LIGHT, WIDTH, Band, Look, draw_curves, keep_above_zero, style, to_svg

Styles = Mapping[str, Look]
INCH = 72
"""Points; a unit of a figure in a page is one."""
LETTER = 6.5
"""Mean width of a letter."""
DISTANCES = (10, 22, 36, 52, 70, 90, 112)
"""Of a label from its point, in the order they are tried."""
TURNS = (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12)
"""Directions of a label in sixteenths of a turn, in the order they are tried: right, left, and then between."""
Place = tuple[float, float, str]
"""Where a text stands, and which end of it."""


def curves(title: str, bands: Mapping[str, Band], styles: Styles) -> str:
    """A line per row over optimiser steps, in a band over its seeds; each has one point at least."""
    with style():
        figure = Figure(figsize=(WIDTH / INCH, HEIGHT / INCH), layout="constrained")
        draw_curves(figure.subplots(), bands, styles)
    ends = {row: (curve[0], curve[-1]) for row, curve in bands.items()}
    words = (f"{row}: {a[1]:.4g} at step {a[0]}, {b[1]:.4g} at step {b[0]}" for row, (a, b) in ends.items())
    return to_svg(figure, title, words)


def forest(title: str, differences: Mapping[str, Difference], styles: Styles) -> str:
    """Effect and interval of each row; the mark is filled where the corrected p-value calls it a difference."""
    with style(**{"axes.grid.axis": "x", "axes.spines.bottom": False}):
        figure = Figure(figsize=(WIDTH / INCH, (48 + 28 * len(differences)) / INCH), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0, color=LIGHT["ink"], linewidth=1.4)
        for place, (row, found) in enumerate(differences.items()):
            ends, own = [[found.effect - found.low], [found.high - found.effect]], LIGHT[styles[row].colour]
            axis.errorbar(found.effect, place, xerr=ends, fmt="none", color=own, elinewidth=2, capsize=4, capthick=2)
            mark = styles[row].mark(solid=direction(found) != "unclear")
            axis.plot(found.effect, place, linestyle="", zorder=3, **mark)
            axis.text(1.03, place, signed(found.effect), transform=axis.get_yaxis_transform(), va="center")
        axis.set_yticks(range(len(differences)), map(shortened, differences), color=LIGHT["ink"])
        axis.set_ylim(len(differences) - 0.4, -0.5)
        axis.locator_params(axis="x", nbins=4)
    words = (
        f"{row}: {signed(found.effect)}, interval {signed(found.low)} to {signed(found.high)}"
        for row, found in differences.items()
    )
    return to_svg(figure, title, words)


def scatter(title: str, points: Mapping[str, tuple[float, float]], styles: Styles, axes: tuple[str, str]) -> str:
    """A labelled mark per row at its x and y, neither below 0; `axes` says what these are."""
    with style():
        figure = Figure(figsize=(420 / INCH, 330 / INCH))
        axis = figure.add_axes((0.12, 0.14, 0.86, 0.76))
        for row, (x, y) in points.items():
            axis.plot(x, y, linestyle="", clip_on=False, zorder=3, **styles[row].mark())
        axis.margins(x=0.06, y=0.12)
        axis.locator_params(nbins=4)
        axis.tick_params(axis="x", pad=10)
        axis.set_xlim(left=0.0)
        keep_above_zero(axis)
        axis.set_xlabel(axes[0])
        axis.set_title(axes[1], loc="left", x=-0.14, fontsize=11.5, pad=16)
        scale = figure.dpi / INCH
        placed = axis.transData.transform(list(points.values())) / scale
        places = {row: (float(x), float(y)) for row, (x, y) in zip(points, placed, strict=True)}
        for row, (across, up, anchor) in labels(places, Bbox([[50, 46], [420, 297]])).items():
            x, y = places[row]
            if math.dist((x, y), (across, up)) > 16:
                ends = [x / 420, across / 420], [y / 330, up / 330]
                figure.add_artist(Line2D(*ends, color=LIGHT["muted"], linewidth=0.8))
            spot = (across / 420, up / 330)
            figure.text(*spot, shortened(row), ha=anchor, va="center_baseline")
    words = (f"{row}: {axes[1]} {two:.4f}, {axes[0]} {one:.4f}" for row, (one, two) in points.items())
    return to_svg(figure, title, words)


def labels(points: Mapping[str, tuple[float, float]], inside: Bbox) -> dict[str, Place]:
    """Where labels go: the nearest place around each point that is free, or beside it if none is."""
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points.values()]
    found = {}
    for row, (x, y) in points.items():
        options = list(_around(x, y, LETTER * len(shortened(row))))
        whole = ((place, box) for place, box in options if inside.contains(*box.min) and inside.contains(*box.max))
        found[row], box = next((one for one in whole if not one[1].count_overlaps(taken)), options[0])
        taken.append(box)
    return found


def shortened(name: str, most: int = 18) -> str:
    """A name, cut if it is long.

    Example:
        >>> shortened("a_very_long_name_of_a_row")
        'a_very_long_name_…'
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _around(x: float, y: float, wide: float) -> Iterator[tuple[Place, Bbox]]:
    """Places of a text around a point, nearest first, each with the box it takes."""
    for distance, turn in product(DISTANCES, TURNS):
        right, up = math.cos(math.tau * turn / 16), math.sin(math.tau * turn / 16)
        across, middle = x + distance * right, y + distance * up
        anchor, shift = ("left", 0.0) if right > 0.1 else ("right", wide) if right < -0.1 else ("center", wide / 2)
        yield (across, middle, anchor), Bbox.from_bounds(across - shift - 2, middle - 7, wide + 4, 15)
