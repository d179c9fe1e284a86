"""Sections of figures in the page of a comparison: effects, learning curves, quality against popularity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genrl.compare.curves import MATCH, Notes, band, panels
from genrl.compare.html.figures import Band, curves, forest, scatter
from genrl.compare.html.markup import Markup, element
from genrl.compare.html.svg import Look, swatch
from genrl.compare.html.verdict import differences, measure, named

Tree = Mapping[str, Any]
Styles = Mapping[str, Look]
Bands = Mapping[str, Mapping[str, Band]]
"""Title of a panel -> row -> its curve."""
KINDS = {"excluded": "history excluded", "raw": "raw"}
"""Of rankings; the verdict is about the first one."""
LEARNING = (
    "Means over seeds; the band reaches from the least seed to the largest. Reward, entropy and dead groups are of "
    "what each objective samples for itself; validation is the same for all. Rows that learn from the targets (ce) "
    "sample nothing and have no reward and no dead groups."
)
MATCHES = (
    "Share of completions whose code at a step is that of the target, over the prompts of the rollouts. Rows that "
    "learn from the targets (ce) are left out."
)
SAMPLED = ("train/reward", "objective/dead_groups", MATCH)
"""Quantities of completions; they say nothing of a row whose completions are the targets."""


def effects(test: Mapping[str, Tree], baseline: str, styles: Styles) -> Markup | None:
    """Effects on test but the first, which stands beside the verdict."""
    about = (
        f"Each row minus {named(baseline)} on test, with 95% intervals over users and, if there are several, seeds. A "
        "filled mark is a difference after Holm's correction, a hollow one is not; the line at zero is no difference."
    )
    return _figure(about, forests(test, styles)[1:])


def forests(test: Mapping[str, Tree], styles: Styles) -> list[Markup]:
    """A forest plot per kind of ranking and metric that has differences."""
    drawn = []
    for kind, table in test.items():
        found = {row: differences(line, table["k"]) for row, line in table["lines"].items()}
        for metric in dict.fromkeys(metric for values in found.values() for metric in values):
            rows = {named(row): values[metric] for row, values in found.items() if metric in values}
            drawn.append(_panel(f"{_title(measure(metric))}, {KINDS[kind]}", forest, rows, _by_name(styles)))
    return drawn


def lines(bands: Bands, styles: Styles, about: str) -> Markup | None:
    """A panel of curves per quantity, with a legend."""
    rows = [row for row in styles if any(row in curve_of for curve_of in bands.values())]
    legend = element("ul", (element("li", swatch(styles[row], line=True), row) for row in rows), class_="legend")
    return _figure(about, [_panel(title, curves, curve_of, styles) for title, curve_of in bands.items()], legend)


def bands_of(notes: Mapping[str, Sequence[Notes]]) -> tuple[Bands, Bands]:
    """Learning curves, and those of the match rates of steps."""
    taught = {row for row, runs in notes.items() if _is_taught(runs)}
    learning: dict[str, dict[str, Band]] = {}
    matches: dict[str, dict[str, Band]] = {}
    for name, title in panels({name for runs in notes.values() for run in runs for name in run}).items():
        rows = [row for row in notes if row not in taught or not name.startswith(SAMPLED)]
        found = {row: band([run[name] for run in notes[row] if name in run]) for row in rows}
        known: dict[str, Band] = {row: curve for row, curve in found.items() if curve}
        if known:
            (matches if name.startswith(MATCH) else learning)[_title(title)] = known
    return learning, matches


def _is_taught(runs: Sequence[Notes]) -> bool:
    """Whether every code of every completion was that of the target."""
    rates = [rate for run in runs for name, values in run.items() if name.startswith(MATCH) for rate in values.values()]
    return bool(rates) and min(rates) == 1.0


def popularity(test: Mapping[str, Tree], styles: Styles) -> Markup | None:
    """Quality against the share of places that the most recommended items take, for every row."""
    drawn = []
    for kind, table in test.items():
        share, quality = f"top1pct_share@{table['k']}", f"ndcg@{table['k']}"
        both = {
            named(row): (line["metrics"].get(share), line["metrics"].get(quality))
            for row, line in table["lines"].items()
        }
        points = {row: pair for row, pair in both.items() if None not in pair}
        if points:
            axes = ("share of places that the top 1% of items take", measure(quality))
            drawn.append(_panel(f"Test, {KINDS[kind]}", scatter, points, _by_name(styles), axes))
    return _figure("Towards the upper left: better lists that lean less on a few items.", drawn, wide=True)


def _figure(about: str, drawn: Sequence[Markup], legend: Markup | None = None, wide: bool = False) -> Markup | None:
    if not drawn:
        return None
    grid = element("div", drawn, class_="panels wide" if wide else "panels")
    return element("figure", element("figcaption", about), legend, grid)


def _panel(title: str, draw: Callable[..., Markup], *content: object) -> Markup:
    return element("figure", element("figcaption", title), draw(title, *content), class_="panel")


def _by_name(styles: Styles) -> dict[str, Look]:
    return {named(row): look for row, look in styles.items()}


def _title(words: str) -> str:
    return words[0].upper() + words[1:]
