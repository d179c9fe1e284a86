"""The table of results in the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrl.compare.html.markup import Markup, element, join, scrolling
from genrl.compare.html.svg import Look, swatch
from genrl.compare.html.verdict import WAYS, differences, direction, measure, named, p_text, signed
from genrl.runs.stages import SUPERVISED

Tree = Mapping[str, Any]
HEADS = {"entropy": "entropy, bits", "coverage": "coverage", "top1pct_share": "top 1%"}
SIGNS = {"higher": "▲", "lower": "▼", "unclear": "○"}
QUALITY = ("ndcg", "recall", "cold_recall")
"""Metrics of which more is better, in the order of the table."""


def groups(report: Tree, lines: Mapping[str, Tree]) -> dict[str, list[str]]:
    """Kind of row -> its rows, those that there are."""
    kinds = {row: facts.get("kind") for row, facts in report.get("rows", {}).items()}
    found: dict[str, list[str]] = {"Reference lines": [], "Baselines": [], "Start": [], "Objectives": []}
    for row, line in lines.items():
        if row in SUPERVISED:
            found["Start"].append(row)
        elif not line["seeds"]:
            found["Reference lines"].append(row)
        else:
            found["Baselines" if kinds.get(row) == "baseline" else "Objectives"].append(row)
    return {name: rows for name, rows in found.items() if rows}


def results(report: Tree, table: Tree, title: str, styles: Mapping[str, Look]) -> Markup:
    """A table of results: every row with its metrics and its differences to the baseline.

    Args:
        report: the whole report.
        table: of one split and kind of ranking.
        title: its caption.
        styles: row -> its look.
    """
    lines = table["lines"]
    names = [f"{metric}@{table['k']}" for metric in (*QUALITY, *HEADS)]
    best = {name: _best(line["metrics"].get(name) for line in lines.values()) for name in names[: len(QUALITY)]}
    heads = [HEADS.get(name.partition("@")[0]) or measure(name) for name in names]
    heads.insert(1, f"minus {named(report['baseline'])}")
    body = []
    for group, rows in groups(report, lines).items():
        body.append(element("tr", element("th", group, scope="rowgroup", colspan=len(heads) + 2)))
        kind = "reference" if group == "Reference lines" else None
        body += [_row(row, lines[row], names, best, styles[row], kind) for row in rows]
    head = element("tr", (element("th", name, scope="col") for name in ("row", "seeds", *heads)))
    cold = table.get("cold_rows")
    counts = f"{table['users']:,} users" + ("" if cold is None else f", {cold:,} with a cold target")
    return scrolling(f"{title} ({counts})", head, body)


def sign(difference: Tree) -> Markup:
    """A mark for what can be said about a difference."""
    way = direction(difference)
    return element("span", SIGNS[way], class_=f"sign {way}", role="img", aria_label=WAYS[way])


def _best(values: Any) -> float | None:  # noqa: ANN401 (any iterable of numbers and None)
    """The largest value, unless all are the same."""
    known = {value for value in values if value is not None}
    return max(known) if len(known) > 1 else None


def _row(
    row: str, line: Tree, names: list[str], best: Mapping[str, float | None], look: Look, kind: str | None
) -> Markup:
    found = differences(line, int(names[0].partition("@")[2]))
    quality, *others = (_value(line["metrics"].get(name), best.get(name)) for name in names)
    low, high = line.get("interval", (None, None))
    interval = None if low is None else element("small", f"[{low:.4f}, {high:.4f}]")
    further = (
        element("td", value, (" ", sign(found[name]), _small(found[name], effect=True)) if name in found else None)
        for name, value in zip(names[1:], others, strict=True)
    )
    return element(
        "tr",
        element("th", swatch(look), named(row), scope="row"),
        element("td", str(len(line["seeds"]) or "–")),
        element("td", quality, interval),
        _difference(found.get(names[0])),
        further,
        class_=kind,
    )


def _value(value: float | None, best: float | None) -> Markup:
    bold = value is not None and value == best
    return element("strong" if bold else "span", "–" if value is None else f"{value:.4f}")


def _difference(found: Tree | None) -> Markup:
    if found is None:
        return element("td", "–")
    relative = "" if found.get("relative") is None else f"{signed(100 * found['relative'], 1)}%, "
    return element(
        "td",
        element("span", signed(found["effect"])),
        " ",
        sign(found),
        _small(found),
        element("small", f"{relative}{p_text(found['p_holm'])}"),
    )


def _small(found: Tree, effect: bool = False) -> Markup:
    interval = element("small", f"[{signed(found['low'])}, {signed(found['high'])}]")
    return join(element("small", signed(found["effect"])), interval) if effect else interval
