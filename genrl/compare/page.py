"""How a report is written: as Markdown, as one self-contained page, and its curves as a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from genrl.compare.figures import curves, forest, scatter
from genrl.compare.quantities import MEASURES, TESTED, Panels, bands_of, capital, titled
from genrl.compare.record import Line, Pair, Report, Table
from genrl.compare.verdict import (
    WAYS,
    direction,
    lead,
    listed,
    named,
    p_text,
    remarks,
    statements,
    warnings,
)
from genrl.metrics.comparison import signed
from genrl.plots import DARK, LIGHT, Notes, curve_grid, looks, save
from genrl.runs.stages import SUPERVISED
from genrl.runs.tables import definition, ties

Record = Mapping[str, Any]
"""One of `genrl.training.samples.Sample`."""
KINDS = {"excluded": "history excluded", "raw": "raw"}
"""Of rankings; the verdict is about the first one."""
UNITS = ("steps", "prompts", "completions", "tokens")
SIGNS = {"higher": "▲", "lower": "▼", "unclear": "○"}
SECTIONS = {
    "Verdict": "verdict",
    "Does thinking pay?": "thinking",
    "Results": "results",
    "Tied and untied targets": "ties",
    "Other effects": "effects",
    "Objectives against each other": "pairs",
    "Learning curves": "learning",
    "Match rate of each step": "matches",
    "Quality and popularity": "popularity",
    "Cost": "cost",
    "Worked examples": "examples",
    "Chosen on validation": "choices",
    "Objectives and rewards": "objectives",
    "Commands and versions": "origin",
    "How to read the numbers": "reading",
}
"""Title -> macro of sections.html.j2."""


def html(report: Report, notes: Mapping[str, Sequence[Notes]], samples: Mapping[str, Sequence[Record]]) -> str:
    """Write a report as a page: no scripts, no requests, the same bytes each time.

    Args:
        report: what there is to say.
        notes: row -> what its runs noted, one per seed.
        samples: row -> worked examples of a last rollout, records of `genrl.training.samples.Sample`.

    Returns:
        The whole document.
    """
    view = View(report, notes, samples)
    macros = ENVIRONMENT.get_template("sections.html.j2").module
    drawn = {title: getattr(macros, macro)(view).strip() for title, macro in SECTIONS.items()}
    sections = {title: content for title, content in drawn.items() if content}
    page = ENVIRONMENT.get_template("page.html.j2")
    return page.render(report=report, view=view, sections=sections, light=LIGHT, dark=DARK)


def markdown(report: Report) -> str:
    """Write a report as Markdown."""
    text = ENVIRONMENT.get_template("report.md.j2").render(report=report, statements=statements)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def draw(notes: Mapping[str, Sequence[Notes]], path: Path) -> None:
    """Draw the curves of some rows into a PNG; what makes no curve is left out."""
    learning, steps = bands_of(notes)
    panels = {**learning, **steps}
    drawn = {title: found for title, found in panels.items() if any(len(curve) > 1 for curve in found.values())}
    if drawn:
        save(curve_grid(drawn, looks(notes)), path)


class View:
    """What the page shows of a report; the arguments are those of `html`."""

    def __init__(
        self, report: Report, notes: Mapping[str, Sequence[Notes]], samples: Mapping[str, Sequence[Record]]
    ) -> None:
        self.report = report
        parts = {
            split: {kind: kinds[kind] for kind in KINDS if kind in kinds} for split, kinds in report.tables.items()
        }
        self.test: dict[str, Table] = parts["test"]
        self.valid: dict[str, Table] = parts.get("valid", {})
        self.kind, self.table = next(iter(self.test.items()))
        """The ranking that the verdict is about."""
        self.groups = groups(report, self.table)
        self.objectives = self.groups.get("Objectives", [])
        others = dict.fromkeys(row for table in self.test.values() for row in table.lines if row not in self.objectives)
        self.styles = looks(self.objectives, list(others))
        learning, matches = bands_of({row: notes[row] for row in self.objectives if notes.get(row)})
        self.learning, self.legend = self._curves(learning)
        self.matches, self.match_legend = self._curves(matches)
        self.samples = {row: found for row, found in samples.items() if found}
        self.shown = max(self.samples, key=lambda row: len(samples[row][0]["completions"]), default=None)
        """Row whose examples are open at first."""
        self.spent = {row: facts.spent or {} for row, facts in report.rows.items()}
        self.units = [unit for unit in UNITS if any(one.get(unit) is not None for one in self.spent.values())]
        self.lead = lead(self.table, report.baseline)
        self.statements = statements(self.table, report.baseline)
        self.remarks = list(remarks(self.test, self.kind, report.baseline))
        self.warnings = warnings(self.table)

    @property
    def facts(self) -> dict[str, str]:
        """The head of the page."""
        seeds = sorted({seed for line in self.table.lines.values() for seed in line.seeds})
        found = {
            "data": self.report.data["name"],
            "compared with": named(self.report.baseline),
            "training seeds": ", ".join(map(str, seeds)) or "none",
            "test users": f"{self.table.users:,}",
        }
        cold = self.table.cold_rows
        return found if cold is None else {**found, "of these with a cold target": f"{cold:,}"}

    @cached_property
    def forests(self) -> dict[str, Markup]:
        """Effects on test by ranking and metric, those that the verdict is about first."""
        drawn = {}
        styles = {named(row): look for row, look in self.styles.items()}
        for kind, table in self.test.items():
            for metric in dict.fromkeys(metric for line in table.lines.values() for metric in line.differences):
                found = {row: line.differences.get(metric) for row, line in table.lines.items()}
                title = f"{capital(titled(metric))}, {KINDS[kind]}"
                drawn[title] = Markup(forest(title, {named(row): one for row, one in found.items() if one}, styles))
        return drawn

    @property
    def scatters(self) -> dict[str, Markup]:
        """Quality against the share of places that the most recommended items take, for every row."""
        drawn = {}
        styles = {named(row): look for row, look in self.styles.items()}
        for kind, table in self.test.items():
            points = {}
            for row, line in table.lines.items():
                share, quality = line.metrics.get(f"top1pct_share@{table.k}"), line.metrics[table.main]
                if share is not None and quality is not None:
                    points[named(row)] = (share, quality)
            if points:
                title = f"Test, {KINDS[kind]}"
                axes = ("share of places that the top 1% of items take", titled(table.main))
                drawn[title] = Markup(scatter(title, points, styles, axes))
        return drawn

    def _curves(self, found: Panels) -> tuple[dict[str, Markup], list[str]]:
        """Figures by title, and the rows in them."""
        rows = [row for row in self.styles if any(row in bands for bands in found.values())]
        return {title: Markup(curves(title, bands, self.styles)) for title, bands in found.items()}, rows


def groups(report: Report, table: Table) -> dict[str, list[str]]:
    """Kind of row -> its rows, those that there are."""
    found: dict[str, list[str]] = {"Reference lines": [], "Baselines": [], "Start": [], "Objectives": []}
    for row, line in table.lines.items():
        trained = "Baselines" if row in report.rows and report.rows[row].kind == "baseline" else "Objectives"
        found["Start" if row in SUPERVISED else trained if line.seeds else "Reference lines"].append(row)
    return {name: rows for name, rows in found.items() if rows}


def _best(table: Table) -> dict[str, float | None]:
    """Tested metric -> its largest value, unless all are the same."""
    found = {}
    for metric in (f"{name}@{table.k}" for name in TESTED):
        known = {value for line in table.lines.values() if (value := line.metrics.get(metric)) is not None}
        found[metric] = max(known) if len(known) > 1 else None
    return found


def _short(metric: str) -> str:
    name, _, cutoff = metric.partition("@")
    return f"{MEASURES[name].head}@{cutoff}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _score(line: Line, metric: str) -> str:
    """Mean with its interval."""
    return _number(line.metrics[metric]) + ("" if line.ends is None else " [{:.4f}, {:.4f}]".format(*line.ends))


def _gain(line: Line | Pair, metric: str) -> list[str]:
    """Difference with its interval, relative, p; empty cells where there is none."""
    found = line.differences.get(metric)
    if found is None:
        return ["", "", ""]
    relative = "-" if found.relative is None else f"{found.relative:+.1%}"
    p_value = f"{found.p_holm:.3f}" if found.p_holm >= 0.001 else "<.001"
    return [f"{found.effect:+.4f} [{found.low:+.4f}, {found.high:+.4f}]", relative, p_value]


def _warned(table: Table, metrics: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Warnings on some metrics that were not given on others already, equal ones of several rows together."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row, line in table.lines.items():
        before = {text for name in known if name in line.differences for text in line.differences[name].warnings}
        for name in metrics:
            for text in line.differences[name].warnings if name in line.differences else ():
                if text not in before:
                    rows.setdefault((_short(name), text), []).append(named(row))
    return [f"{', '.join(found)}, {head}: {text}" for (head, text), found in rows.items()]


def apart_heads(table: Table) -> list[str]:
    """Heads of the columns for tied and untied targets, with their numbers."""
    return [f"{_short(metric)}, {count:,} {part}" for part, count in table.ties.items() for metric in table.apart]


def apart(line: Line, table: Table) -> list[str]:
    """What a row scored on them, under these heads."""
    return [_number(line.ties.get(part, {}).get(metric)) for part in table.ties for metric in table.apart]


def _further(table: Table) -> list[str]:
    """Metrics with differences beside the main one."""
    first = next((line.differences for line in table.lines.values() if line.differences), {})
    return [metric for metric in first if metric != table.main]


def _largest_push(sample: Record) -> float:
    """Largest size of an advantage among the completions of a prompt."""
    return max((abs(value) for one in sample["completions"] for value in one["advantages"]), default=0.0) or 1.0


def _later(parts: Mapping[str, Markup]) -> dict[str, Markup]:
    return dict(list(parts.items())[1:])


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("genrl.compare"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    quality = [*TESTED, *(name for name in MEASURES if name not in TESTED)]
    found.globals |= {"kinds": KINDS, "ways": WAYS, "signs": SIGNS, "measures": quality, "tested": TESTED}
    found.filters |= {
        "apart": apart,
        "apart_heads": apart_heads,
        "anchor": lambda title: title.lower().replace(" ", "-").rstrip("?"),
        "bare_title": lambda metric: MEASURES[metric.partition("@")[0]].title,
        "best": _best,
        "cell": lambda text: str(text).replace("|", r"\|"),  # a bar would begin another cell
        "decimal": "{:.4f}".format,
        "definition": lambda metric, table: definition(metric, table.cold_rows),
        "direction": direction,
        "further": _further,
        "gain": _gain,
        "heading": lambda name: MEASURES[name].title,
        "largest_push": _largest_push,
        "later": _later,
        "listed": listed,
        "named": named,
        "number": _number,
        "others": lambda line, metrics: [_number(line.metrics[name]) for name in metrics],
        "p_text": p_text,
        "score": _score,
        "short": _short,
        "signed": signed,
        "ties": ties,
        "titled": titled,
        "tokens": lambda report, row: (report.rows[row].spent or {}).get("tokens") if row in report.rows else None,
        "variables": lambda colours: "".join(f"--{name}:{value};" for name, value in colours.items()),
        "warned": _warned,
    }
    return found


ENVIRONMENT = _environment()
