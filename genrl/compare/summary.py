"""What the terminal shows of a report: the verdict in words, one table, and where the rest is."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from genrl.compare.figures import shortened
from genrl.compare.page import KINDS, apart, apart_heads, groups
from genrl.compare.quantities import TESTED, titled
from genrl.compare.record import Line, Report, Table
from genrl.compare.verdict import lead, listed, named, p_text, remarks, signed, warnings
from genrl.runs.tables import definition, ties
from genrl.terminal import verbatim

WIDTH = 100
"""Columns where there is no terminal that says how many it has."""


def show(report: Report, folder: Path | None, console: Console | None = None) -> None:
    """Print a report, which lies in a folder if it could be written."""
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    kinds = {kind: report.tables["test"][kind] for kind in KINDS if kind in report.tables["test"]}
    kind, table = next(iter(kinds.items()))
    care = len({text for found in warnings(table).values() for text in found})
    for line in (
        f"Partial: {listed(report.unfinished)} not finished." if report.unfinished else "",
        *report.notes,
        lead(table, report.baseline),
        *remarks(kinds, kind, report.baseline),
        f"Read with care: {care} {'warning' if care == 1 else 'warnings'} in the report." if care else "",
    ):
        if line:
            console.print(verbatim(line))
    console.print(_grid(report, table, f"test, {KINDS[kind]}: {table.of}, {table.main.upper()}"))
    console.print(verbatim(f"cold recall@{table.k}: {definition('cold_recall', table.cold_rows)}."))
    if table.ties:
        console.print(_by_ties(report, table))
        console.print(verbatim(ties(table.ties)))
    for path in (folder / "report.html", folder / "report.md") if folder else ():
        console.print(verbatim(path), soft_wrap=True)


def _grid(report: Report, table: Table, title: str) -> Grid:
    others = [f"{name}@{table.k}" for name in TESTED if f"{name}@{table.k}" != table.main]
    grid = Grid(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    grid.add_column("", no_wrap=True)
    baseline = shortened(named(report.baseline))
    for head in ("seeds", titled(table.main), f"minus {baseline}, 95% interval", "p", *map(titled, others)):
        grid.add_column(verbatim(head), justify="right")
    for rows in groups(report, table).values():
        for row in rows:
            line = table.lines[row]
            cells = [str(len(line.seeds) or ""), *_main(line, table.main), *(_number(line, name) for name in others)]
            grid.add_row(verbatim(shortened(named(row))), *cells)
    return grid


def _by_ties(report: Report, table: Table) -> Grid:
    """Tied and untied targets, whose numbers the heads say."""
    grid = Grid(title="tied and untied targets", box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    grid.add_column("", no_wrap=True)
    for head in apart_heads(table):
        grid.add_column(head, justify="right")
    for row in (row for rows in groups(report, table).values() for row in rows):
        grid.add_row(verbatim(shortened(named(row))), *apart(table.lines[row], table))
    return grid


def _main(line: Line, metric: str) -> list[str]:
    """Mean, difference with interval, p."""
    found = line.differences.get(metric)
    if found is None:
        return [_number(line, metric), "", ""]
    interval = f"{signed(found.effect)} [{signed(found.low)}, {signed(found.high)}]"
    return [_number(line, metric), interval, p_text(found.p_holm).removeprefix("p ").removeprefix("= ")]


def _number(line: Line, metric: str) -> str:
    value = line.metrics[metric]
    return "" if value is None else f"{value:.4f}"
