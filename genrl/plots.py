"""Figures: how rows look, what runs noted as bands over seeds, and pictures as PNG for files or as SVG for pages."""

import io
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

from genrl.errors import CheckpointError, shown
from genrl.files import atomic
from genrl.given import parsed

Notes = dict[str, dict[int, float]]
"""What a run noted: quantity -> step -> value."""
Band = list[tuple[int, float, float, float]]
"""Step, mean, least and largest value over seeds."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8000")
"""Distinct to colour-blind readers, too (Okabe and Ito; their yellow cannot be seen on white, this one can)."""
LIGHT = {
    **{f"colour{number}": colour for number, colour in enumerate(COLOURS)},
    "paper": "#ffffff",
    "panel": "#f5f7f9",
    "ink": "#1a1f26",
    "muted": "#56606c",
    "rule": "#d7dde3",
    "accent": "#0b5c94",
    "grey": "#6b7580",
    "up": "#0072b2",
    "down": "#d55e00",
}
"""Colours of figures and pages by name; a page shows the same figures in those of `DARK`, too."""
DARK = {
    **LIGHT,
    "paper": "#13171c",
    "panel": "#1b2027",
    "ink": "#e7ebf0",
    "muted": "#a3adb8",
    "rule": "#323a43",
    "accent": "#7cc0f0",
    "grey": "#98a2ad",
    "up": "#3fa3e0",
    "down": "#f08a3c",
    "colour0": "#2f95d6",  # as far from black as the others
    "colour6": "#f2f4f6",  # black
    "colour7": "#f0e442",
}
DASHES: tuple[Any, ...] = ("-", (0, (3.5, 1.5)), (0, (3.5, 1.25, 0.75, 1.25)), (0, (0.75, 1.25)))
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<")
MOST_POINTS, MOST_MARKS = 100, 40
"""Points of a curve at most, longer ones are drawn as means of neighbouring points; and points with a mark each."""
SPAN = 0.2
"""Least height of a panel, as a share of its largest value: less is mostly noise, and would look like a trend."""
WIDTH, HEIGHT = 360, 230
"""Of a panel, in points."""
STYLE = {
    "axes.edgecolor": LIGHT["rule"],
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.titlecolor": LIGHT["ink"],
    "font.size": 11.5,
    "grid.color": LIGHT["rule"],
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "genrl",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # names of rows are no formulas
    "xtick.color": LIGHT["muted"],
    "xtick.major.pad": 7,
    "xtick.major.size": 0,
    "ytick.color": LIGHT["muted"],
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Look:
    """How a row looks in every figure; colour is never the only sign."""

    colour: str
    """Name in `LIGHT` and `DARK`."""
    dash: Any
    marker: str
    solid: bool
    """Whether its mark is filled, where that does not say something else."""

    @property
    def line(self) -> dict[str, Any]:
        """Options of `Axes.plot`, those of its mark aside."""
        return {"color": LIGHT[self.colour], "linestyle": self.dash}

    def mark(self, solid: bool | None = None) -> dict[str, Any]:
        """Options of `Axes.plot` for its mark, filled as the look says or as asked for."""
        own, paper = LIGHT[self.colour], LIGHT["paper"]
        filled = self.solid if solid is None else solid
        face, edge, width = (own, paper, 1.0) if filled else (paper, own, 1.8)
        shape = {"marker": self.marker, "markersize": 8 if self.marker not in "sD" else 7}
        return {**shape, "markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width}

    @property
    def shape(self) -> str:
        """Its mark around the origin as an SVG path, for legends."""
        style, size = MarkerStyle(self.marker), self.mark()["markersize"]
        path = style.get_path().transformed(style.get_transform() + Affine2D().scale(size, -size))
        polygons: Any = path.to_polygons()
        return "".join(f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in polygon)}z" for polygon in polygons)

    @property
    def dashes(self) -> str | None:
        """Its dash as SVG has it, for legends; None is solid."""
        return None if self.dash == "-" else " ".join(f"{2 * part:g}" for part in self.dash[1])


def look(number: int) -> Look:
    """Of the n-th row; the first 16 differ in colour and mark."""
    turn = number + number // len(COLOURS)
    return Look(f"colour{number % len(COLOURS)}", DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)], solid=True)


def looks(trained: Iterable[str], others: Collection[str] = ()) -> dict[str, Look]:
    """Of trained rows; the other rows are grey and hollow, each with a mark of its own."""
    hollow = (Look("grey", "-", marker, solid=False) for marker in MARKERS * (1 + len(others) // len(MARKERS)))
    return {row: look(number) for number, row in enumerate(trained)} | dict(zip(others, hollow, strict=False))


def read_notes(folder: Path) -> Notes:
    """What a run noted; values that are not finite (a mean over no rows) are left out.

    Raises:
        CheckpointError: naming the first line that is no note.
    """
    found: Notes = defaultdict(dict)
    for place, line in noted_lines(folder / "history.jsonl"):
        try:
            note = parsed(line)
            step = int(note.pop("step"))
            values = {name: float(value) for name, value in note.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{place} is damaged: it holds no note ({shown(error)}). Cut it off.") from error
        for name, value in values.items():
            if math.isfinite(value):
                found[name][step] = value
    return dict(found)


def noted_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Place and content of each line of a file of notes; none if there is no such file."""
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        yield f"{path}:{number}", line


def band(curves: Sequence[Mapping[int, float]]) -> Band:
    """Mean, least and largest value over seeds at the steps that all seeds have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = ([curve[step] for curve in curves] for step in steps)
    return [(step, statistics.mean(seeds), min(seeds), max(seeds)) for step, seeds in zip(steps, values, strict=True)]


@contextmanager
def style(**further: Any) -> Iterator[None]:  # noqa: ANN401 (options of matplotlib)
    """Figures made and saved in this context look alike; further options of matplotlib come last."""
    options: Any = {**STYLE, **further}  # matplotlib lists every name as a type
    with matplotlib.rc_context(options):
        yield


def draw_curves(axis: Axes, bands: Mapping[str, Band], styles: Mapping[str, Look]) -> None:
    """A line per row over optimiser steps, with a mark at every value (on a long curve a few), in a band over seeds."""
    for row, points in bands.items():
        if points:
            steps, means, lows, highs = zip(*_thinned(points), strict=True)
            every = 1 if len(steps) <= MOST_MARKS else math.ceil(len(steps) / 6)
            marks = {**styles[row].mark(), "markersize": 6.5, "markevery": every}
            axis.plot(steps, means, label=row, **styles[row].line, **marks, clip_on=False)
            axis.fill_between(steps, lows, highs, color=LIGHT[styles[row].colour], alpha=0.14, linewidth=0)
    axis.set_xlabel("optimiser steps")
    axis.locator_params(axis="both", nbins=6)
    axis.locator_params(axis="x", integer=True)
    axis.margins(x=0.02)
    first, last = axis.dataLim.intervalx
    if 0 <= last - first < 1:  # one step
        axis.set_xlim(first - 1, first + 1)
    keep_span(axis)
    keep_above_zero(axis)


def keep_span(axis: Axes) -> None:
    """Widen the y axis around its curves where these differ by less than `SPAN` of their largest value."""
    low, high = axis.dataLim.intervaly
    missing = SPAN * max(abs(low), abs(high)) - (high - low)
    if math.isfinite(missing) and missing > 0:
        axis.set_ylim(low - missing / 2, high + missing / 2)


def keep_above_zero(axis: Axes) -> None:
    """End the y axis at 0 where only its margin would lie below."""
    low = axis.get_ylim()[0]
    if low < 0 <= axis.dataLim.y0:
        axis.set_ylim(bottom=0.0)


def curve_grid(
    panels: Mapping[str, Mapping[str, Band]], styles: Mapping[str, Look], columns: int = 3, title: str | None = None
) -> Figure:
    """A figure for a file: a panel per quantity (title -> row -> its curve), one at least, and one legend."""
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    with style(**{"font.size": 9.5, "axes.titlesize": 10.5}):
        figure = Figure(figsize=(4.2 * columns, 2.9 * height + 0.5), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False)
        for axis, (name, bands) in zip(axes.flat, panels.items(), strict=False):
            draw_curves(axis, bands, styles)
            axis.set_title(name)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        if title is not None:
            figure.suptitle(title)
        add_legend(figure)
    return figure


def add_legend(figure: Figure, columns: int = 8) -> None:
    """Name the rows below a figure once, if there are several, in the order in which they were drawn."""
    handles = {name: one for axis in figure.axes for one, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1:
        options: dict[str, Any] = {"ncols": min(len(handles), columns), "handlelength": 4}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", **options)


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a PNG in one move, without metadata, so that the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with style(), atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", metadata={"Software": None})


def to_svg(figure: Figure, title: str, words: Iterable[str]) -> str:
    """A figure for a page: an `svg` element, which screen readers read by its title and words; these are escaped.

    It has no background, and every colour is the CSS variable of its name in `LIGHT`.
    """
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    for axis in figure.axes:
        axis.patch.set_visible(False)
    with style():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = ElementTree.fromstring(buffer.getvalue())
    marks = {f"#{one.get('id')}": one.get("d", "") for one in drawn.iter(f"{SPACE}path") if one.get("id")}
    page = ElementTree.Element("svg", {"viewBox": drawn.get("viewBox", ""), "role": "img", "class": "figure"})
    ElementTree.SubElement(page, "title").text = title
    ElementTree.SubElement(page, "desc").text = "; ".join(words)
    _copy(drawn, page, marks)
    return ElementTree.tostring(page, encoding="unicode")


SPACE = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
DRAWN = ("path", "text", "g")
NAMED = {value: name for name, value in reversed(LIGHT.items())}


def _copy(source: ElementTree.Element, target: ElementTree.Element, marks: Mapping[str, str]) -> None:
    """Copy what is drawn without ids, definitions and fonts; marks that are used many times become paths."""
    for child in source:
        kind = str(child.tag).removeprefix(SPACE)
        facts = {name: _rounded(child.get(name, "")) for name in ("d", "x", "y", "transform") if child.get(name)}
        if facts.get("transform", "").startswith("rotate(-0 "):
            del facts["transform"]
        if kind == "use":
            place = {"transform": f"translate({facts['x']} {facts['y']})"}
            kind, facts = "path", {"d": _rounded(marks[child.get(LINK, "")]), **place}
        if kind not in DRAWN:
            continue
        if child.get("style"):
            facts["style"] = _styled(child.get("style", ""))
        part = ElementTree.SubElement(target, kind, facts) if kind != "g" else target
        part.text = child.text if kind == "text" else part.text
        _copy(child, part, marks)


def _styled(text: str) -> str:
    parts = (part.strip() for part in text.split(";"))
    kept = ";".join(part.replace(": ", ":") for part in parts if not part.startswith("font"))
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var(--{NAMED[found[0]]})" if found[0] in NAMED else found[0], kept)


def _rounded(text: str) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)
    return " ".join(short.split())


def _thinned(points: Band) -> Band:
    size = math.ceil(len(points) / MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[math.fsum(column) / len(part) for column in zip(*part, strict=True)] for part in parts]
    return [(round(step), mean, low, high) for step, mean, low, high in means]
