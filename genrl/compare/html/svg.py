"""Pieces of figures as inline SVG: looks of rows, scales, grids, texts and marks. A style sheet gives them colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from genrl.compare.curves import COLOURS
from genrl.compare.html.markup import Markup, element

LETTER = 6.5
"""Mean width of a letter at the size of the figures."""
DASHES = (None, "7 3", "7 2.5 1.5 2.5", "1.5 2.5")
SHAPES = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",
    "M-3.8-3.8h7.6v7.6h-7.6z",
    "M0-5l4.7 8.4h-9.4z",
    "M0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z",
    "M0 5l4.7-8.4h-9.4z",
    "M-1.6-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z",
    "M0-5l4.8 3.5-1.8 5.6h-6l-1.8-5.6z",
    "M-5 0l8.4-4.7v9.4z",
)
"""Marks around the origin: circle, square, triangle, diamond, two more triangles among a plus and a pentagon."""
Marks = Sequence[tuple[float, str]]
"""Values of an axis with their texts."""


@dataclass(frozen=True)
class Look:
    """How a row looks in every figure; colour is never the only sign."""

    colour: str
    """CSS class that sets the colour."""
    dash: str | None
    shape: str
    solid: bool
    """Whether its mark is filled, where that does not say something else."""


@dataclass(frozen=True)
class Scale:
    """Maps values linearly to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def looks(trained: Iterable[str], others: Iterable[str]) -> dict[str, Look]:
    """Colours, dashes and shapes of trained rows; the other rows are grey and hollow, each with a shape of its own.

    Example:
        >>> looks(["grpo"], ["align"])["align"].colour
        'grey'
    """
    found = {}
    for number, row in enumerate(trained):
        shape = SHAPES[(number + number // len(COLOURS)) % len(SHAPES)]
        found[row] = Look(f"colour{number % len(COLOURS)}", DASHES[number % len(DASHES)], shape, solid=True)
    for number, row in enumerate(others):
        found[row] = Look("grey", None, SHAPES[number % len(SHAPES)], solid=False)
    return found


def swatch(look: Look, line: bool = False) -> Markup:
    """The mark of a row for tables and legends, on a piece of its line if wanted."""
    width = 30 if line else 14
    return element(
        "svg",
        element("path", d=f"M0 7H{width}", class_="line", stroke_dasharray=look.dash) if line else None,
        mark(look, width / 2, 7.0, look.solid),
        class_=f"swatch {look.colour}",
        width=width,
        height=14,
        aria_hidden="true",
        focusable="false",
    )


def ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round values between two, at most so many, with their texts.

    Example:
        >>> ticks(0.0, 0.1)
        [(0.0, '0.00'), (0.02, '0.02'), (0.04, '0.04'), (0.06, '0.06'), (0.08, '0.08'), (0.1, '0.10')]
    """
    least = (high - low) / (most - 1)
    first = math.floor(math.log10(least))
    factor, power = next((f, e) for e, f in product((first, first + 1), (1, 2, 5)) if f * 10.0**e >= least * (1 - 1e-9))
    step, decimals = factor * 10.0**power, max(0, -power)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    values = [round(number * step, decimals) for number in numbers]
    texts = (f"{value:,.{decimals}f}" if decimals < 7 or not value else f"{value:.0e}" for value in values)
    return [(value, text.replace("-", "−")) for value, text in zip(values, texts, strict=True)]


def padded(low: float, high: float) -> tuple[float, float]:
    """A little more than a range, never an empty one; it does not go below 0 if the range does not.

    Example:
        >>> padded(0.0, 1.0), padded(0.0, 0.0)
        ((0.0, 1.06), (0.0, 0.001))
    """
    space = 0.06 * (high - low) or 0.1 * abs(low) or 1e-3
    return (max(low - space, 0.0) if low >= 0 else low - space), high + space


def grid(x: Scale, y: Scale, across: Marks, up: Marks) -> Iterator[Markup]:
    """Lines and texts for the values of y, texts for those of x."""
    for value, words in up:
        yield element("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid")
        yield text(words, x.start - 6, y(value) + 4, "end", "tick")
    for value, words in across:
        yield text(words, min(x(value), x.end - LETTER * len(words) / 2 + 6), y.start + 16, "middle", "tick")


def margin(marks: Marks) -> float:
    """Room for the texts of y."""
    return 10 + LETTER * max((len(words) for _, words in marks), default=1)


def text(words: str, x: float, y: float, anchor: str = "start", kind: str = "label") -> Markup:
    """Words at a place."""
    return element("text", words, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def mark(look: Look, x: float, y: float, filled: bool) -> Markup:
    """The shape of a row at a place."""
    return element("path", d=look.shape, class_="mark" if filled else "hollow", transform=f"translate({x:.1f} {y:.1f})")


def path(points: Sequence[tuple[float, float]]) -> str:
    """What a path through points draws.

    Example:
        >>> path([(0, 1), (2, 3)])
        'M0.0 1.0L2.0 3.0'
    """
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def figure(title: str, descriptions: Iterable[str], size: tuple[float, float], parts: Iterable[Markup]) -> Markup:
    """A figure that scales with the page and that a screen reader can tell.

    Args:
        title: what is drawn.
        descriptions: what it shows, in words.
        size: width and height in its own units.
        parts: of the drawing.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", "; ".join(descriptions)),
        parts,
        viewBox=f"0 0 {size[0]:.0f} {size[1]:.0f}",
        role="img",
        class_="figure",
    )


def shortened(name: str, most: int = 18) -> str:
    """A name, cut if it is long.

    Example:
        >>> shortened("a_very_long_name_of_a_row")
        'a_very_long_name_…'
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"
