"""Figures of a comparison: learning curves, effects with intervals, a scatter plot with labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from genrl.compare.html.markup import Markup, element
from genrl.compare.html.svg import (
    LETTER,
    Look,
    Scale,
    figure,
    grid,
    margin,
    mark,
    padded,
    path,
    shortened,
    text,
    ticks,
)
from genrl.compare.html.verdict import direction, signed

WIDTH = 360.0
"""Of a figure, in its own units."""
WIDE = 420.0
"""Of a scatter plot."""
MOST_POINTS = 100
"""Of a curve; a longer one is drawn as means of neighbouring points."""
DISTANCES = (10, 22, 36, 52, 70, 90, 112)
"""Of a label from its point, in the order they are tried."""
TURNS = (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12)
"""Directions of a label in sixteenths of a turn, in the order they are tried: right, left, and then between."""
Band = Sequence[tuple[int, float, float, float]]
"""Step, mean, least and largest value over seeds."""
Box = tuple[float, float, float, float]
"""Left, upper, right and lower end."""
Place = tuple[float, float, str]
"""Where a text stands, and which end of it."""


def curves(title: str, bands: Mapping[str, Band], styles: Mapping[str, Look]) -> Markup:
    """A line per row over optimiser steps, with a band over its seeds.

    Args:
        title: what is drawn.
        bands: row -> its curve, at least one point each.
        styles: row -> its look.
    """
    height = 230.0
    thin = {row: _thinned(curve) for row, curve in bands.items()}
    points = [point for curve in thin.values() for point in curve]
    bottom, top = padded(min(point[2] for point in points), max(point[3] for point in points))
    first, last = min(point[0] for point in points), max(point[0] for point in points)
    up = ticks(bottom, top)
    x = Scale(first, max(last, first + 1), margin(up), WIDTH - 8)
    y = Scale(bottom, top, height - 40, 10)
    parts = [*grid(x, y, ticks(x.low, x.high), up), _below(x, height, "optimiser steps")]
    parts += [_curve(curve, x, y, styles[row]) for row, curve in thin.items()]
    words = (f"{row}: {c[0][1]:.4g} at step {c[0][0]}, {c[-1][1]:.4g} at step {c[-1][0]}" for row, c in bands.items())
    return figure(title, words, (WIDTH, height), parts)


def forest(title: str, differences: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Look]) -> Markup:
    """Effect and interval of each row; the mark is filled where the corrected p-value calls it a difference.

    Args:
        title: what is compared.
        differences: row -> effect, low, high and p_holm.
        styles: row -> its look.
    """
    height = 48 + 28.0 * len(differences)
    ends = [found[end] for found in differences.values() for end in ("low", "high")]
    low, high = padded(min(0.0, *ends), max(0.0, *ends))
    x = Scale(low, high, 12 + LETTER * max(len(shortened(row)) for row in differences), WIDTH - 64)
    y = Scale(0, len(differences), 10, height - 38)
    parts = []
    for value, words in ticks(low, high, most=5):
        parts.append(element("line", x1=x(value), x2=x(value), y1=y.start, y2=y.end, class_="grid"))
        parts.append(text(words, x(value), y.end + 16, "middle", "tick"))
    parts.append(element("line", x1=x(0), x2=x(0), y1=y.start, y2=y.end, class_="zero"))
    parts += [
        _effect(row, found, x, y(place + 0.5), styles[row]) for place, (row, found) in enumerate(differences.items())
    ]
    said = (
        f"{row}: {signed(found['effect'])}, interval {signed(found['low'])} to {signed(found['high'])}"
        for row, found in differences.items()
    )
    return figure(title, said, (WIDTH, height), parts)


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], styles: Mapping[str, Look], axes: tuple[str, str]
) -> Markup:
    """A labelled mark per row.

    Args:
        title: what is drawn.
        points: row -> x and y, neither below 0.
        styles: row -> its look.
        axes: what x and y are.
    """
    height = 330.0
    (_, right), (_, top) = (padded(0.0, max(values)) for values in zip(*points.values(), strict=True))
    up = ticks(0.0, top)
    x, y = Scale(0.0, right, margin(up), WIDE - 8), Scale(0.0, top, height - 40, 26)
    parts = [*grid(x, y, ticks(0.0, right), up), _below(x, height, axes[0]), text(axes[1], 0, 12)]
    places = {row: (x(one), y(two)) for row, (one, two) in points.items()}
    for row, (across, down, anchor) in _labels(places, (x.start, 18.0, WIDE, height - 42)).items():
        (one, two), middle = places[row], down - 4
        if math.dist((one, two), (across, middle)) > 16:
            parts.append(element("line", x1=one, y1=two, x2=across, y2=middle, class_="leader"))
        parts.append(text(shortened(row), across, down, anchor))
    for row, place in places.items():
        parts.append(element("g", mark(styles[row], *place, styles[row].solid), class_=styles[row].colour))
    words = (f"{row}: {axes[1]} {two:.4f}, {axes[0]} {one:.4f}" for row, (one, two) in points.items())
    return figure(title, words, (WIDE, height), parts)


def _curve(curve: Band, x: Scale, y: Scale, look: Look) -> Markup:
    line = [(x(step), y(mean)) for step, mean, _, _ in curve]
    above = [(x(step), y(high)) for step, _, _, high in curve]
    below = [(x(step), y(low)) for step, _, low, _ in reversed(curve)]
    return element(
        "g",
        element("path", d=f"{path([*above, *below])}z", class_="band"),
        element("path", d=path(line), class_="line", stroke_dasharray=look.dash),
        (mark(look, *place, look.solid) for place in line[:: math.ceil(len(line) / 6)]),
        class_=look.colour,
    )


def _thinned(curve: Band) -> list[tuple[int, float, float, float]]:
    size = math.ceil(len(curve) / MOST_POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    means = [[math.fsum(column) / len(part) for column in zip(*part, strict=True)] for part in parts]
    return [(round(step), mean, low, high) for step, mean, low, high in means]


def _effect(row: str, found: Mapping[str, Any], x: Scale, centre: float, look: Look) -> Markup:
    low, high = x(found["low"]), x(found["high"])
    caps = f"M{low:.1f} {centre - 4:.1f}v8M{high:.1f} {centre - 4:.1f}v8"
    return element(
        "g",
        text(shortened(row), x.start - 10, centre + 4, "end"),
        element("path", d=f"M{low:.1f} {centre:.1f}H{high:.1f}{caps}", class_="line"),
        mark(look, x(found["effect"]), centre, filled=direction(found) != "unclear"),
        text(signed(found["effect"]), WIDTH - 2, centre + 4, "end"),
        class_=look.colour,
    )


def _below(x: Scale, height: float, words: str) -> Markup:
    return text(words, (x.start + x.end) / 2, height - 6, "middle", "axis")


def _labels(points: Mapping[str, tuple[float, float]], inside: Box) -> dict[str, Place]:
    """Where labels go: the nearest place around each point that is free, or beside it if none is."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points.values()]
    found = {}
    for row, (x, y) in points.items():
        options = list(_around(x, y, LETTER * len(shortened(row))))
        free = (
            option
            for option in options
            if _within(option[1], inside) and not any(_overlap(option[1], box) for box in taken)
        )
        found[row], box = next(free, options[0])
        taken.append(box)
    return found


def _around(x: float, y: float, wide: float) -> Iterator[tuple[Place, Box]]:
    """Places of a text around a point, nearest first, each with the box it takes."""
    for distance, turn in product(DISTANCES, TURNS):
        right, up = math.cos(math.tau * turn / 16), math.sin(math.tau * turn / 16)
        across, down = x + distance * right, y - distance * up + 4
        anchor, shift = ("start", 0.0) if right > 0.1 else ("end", wide) if right < -0.1 else ("middle", wide / 2)
        yield (across, down, anchor), (across - shift - 2, down - 11, across - shift + wide + 2, down + 4)


def _within(box: Box, outer: Box) -> bool:
    return outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
