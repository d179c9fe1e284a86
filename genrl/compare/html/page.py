"""The report of a comparison as one self-contained HTML page: no scripts, no requests, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genrl.compare.curves import Notes
from genrl.compare.html import origin, panels
from genrl.compare.html.examples import example
from genrl.compare.html.markup import Markup, element, join
from genrl.compare.html.panels import KINDS
from genrl.compare.html.results import SIGNS, groups, results
from genrl.compare.html.style import sheet
from genrl.compare.html.svg import Look, looks, swatch
from genrl.compare.html.verdict import lead, listed, measure, named, remarks, statements, warnings

Tree = Mapping[str, Any]
Styles = Mapping[str, Look]
SPLITS = {"test": "Test", "valid": "Validation"}


def html(
    report: Tree,
    notes: Mapping[str, Sequence[Notes]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Write a report as a page.

    Args:
        report: as `genrl.compare.report` writes it into report.json.
        notes: row -> what its runs noted, one per seed.
        samples: row -> worked examples of a last rollout, records of `genrl.training.samples.Sample`.

    Returns:
        The whole document.
    """
    tables = {
        split: {kind: kinds[kind] for kind in KINDS if kind in kinds} for split, kinds in report["tables"].items()
    }
    test = tables["test"]
    lines = next(iter(test.values()))["lines"]
    objectives = groups(report, lines).get("Objectives", [])
    styles = looks(objectives, [row for row in lines if row not in objectives])
    learning, matches = panels.bands_of({row: notes[row] for row in objectives if notes.get(row)})
    sections = {
        "Verdict": _verdict(report, test, styles),
        "Does thinking pay?": origin.thinking(report, styles),
        "Results": _results(report, tables, styles),
        "Other effects": panels.effects(test, report["baseline"], styles),
        "Learning curves": panels.lines(learning, styles, panels.LEARNING),
        "Match rate of each step": panels.lines(matches, styles, panels.MATCHES),
        "Quality and popularity": panels.popularity(test, styles),
        "Cost": origin.cost(report, styles),
        "Worked examples": _examples(samples, styles),
        "Chosen on validation": origin.choices(report["choices"]),
        "Objectives and rewards": origin.objectives(report),
        "Commands and versions": origin.origin(report),
        "How to read the numbers": origin.reading(),
    }
    shown = {title: content for title, content in sections.items() if content}
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"Comparison: {report['experiment']}"),
        element("style", Markup(sheet())),
    )
    body = element(
        "body",
        _header(report, next(iter(test.values())), objectives, shown),
        element("main", (_section(title, content) for title, content in shown.items())),
        element("footer", "Written by genrl. report.json beside this page holds the same numbers with more digits."),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _header(report: Tree, table: Tree, objectives: Sequence[str], sections: Iterable[str]) -> Markup:
    seeds = sorted({seed for line in table["lines"].values() for seed in line["seeds"]})
    facts = {
        "data": report["data"]["name"],
        "compared with": named(report["baseline"]),
        "training seeds": ", ".join(map(str, seeds)) or "none",
        "test users": f"{table['users']:,}",
    }
    if table.get("cold_rows") is not None:
        facts["of these with a cold target"] = f"{table['cold_rows']:,}"
    start = " from the same start" if report["shared"] else ""
    unfinished = report["unfinished"]
    complete = "Complete: all runs are finished" if report.get("planned", True) else "All runs found here are finished"
    state = f"Partial: not finished are {', '.join(unfinished)}" if unfinished else complete
    return element(
        "header",
        element("p", "Objectives side by side", class_="above"),
        element("h1", report["experiment"]),
        element("p", f"{listed(objectives)}{start}", class_="subtitle") if objectives else None,
        element("p", state, class_="state partial" if unfinished else "state"),
        element(
            "dl",
            (element("div", element("dt", name), element("dd", value)) for name, value in facts.items()),
            class_="facts",
        ),
        element(
            "nav",
            element("ul", (element("li", element("a", title, href=f"#{_anchor(title)}")) for title in sections)),
            aria_label="sections",
        ),
    )


def _verdict(report: Tree, test: Mapping[str, Tree], styles: Styles) -> Markup:
    kind, table = next(iter(test.items()))
    baseline = report["baseline"]
    effects = next(iter(panels.forests({kind: table}, styles)), None)
    words = element(
        "div",
        _statements(table, baseline),
        element("ul", [element("li", text) for text in remarks(test, kind, baseline)], class_="remarks"),
    )
    scope = f"On test, {KINDS[kind]}, {table['users']:,} users. Each row minus {named(baseline)}, NDCG@{table['k']}."
    return join(
        element("p", lead(table, baseline), class_="lead"),
        element("p", scope, class_="note") if effects else None,
        element("div", words, effects, class_="beside"),
        _care(report, table),
    )


UNCLEAR = "Any change inside its interval is compatible with the data."


def _statements(table: Tree, baseline: str) -> Markup:
    heads = {
        "higher": f"Higher than {named(baseline)}",
        "lower": f"Lower than {named(baseline)}",
        "unclear": f"Not told apart from {named(baseline)}",
    }
    found = statements(table, baseline)
    parts = []
    for way, head in heads.items():
        rows = [
            element("li", element("strong", named(one.row)), f" {one.text}") for one in found if one.direction == way
        ]
        if rows:
            sign = element("span", SIGNS[way], " ", class_=f"sign {way}", aria_hidden="true")
            about = element("p", UNCLEAR, class_="note") if way == "unclear" else None
            parts.append(join(element("h3", sign, head), about, element("ul", rows)))
    return element("div", parts, class_="verdict")


def _care(report: Tree, table: Tree) -> Markup | None:
    """Notes on the whole report and warnings; those on other metrics than the first are folded."""
    said = {
        metric: [element("li", f"{listed([named(row) for row in rows])}: {text}") for text, rows in found.items()]
        for metric, found in warnings(table).items()
    }
    first = said.pop(f"ndcg@{table['k']}", [])
    open_ = [*(element("li", text) for text in report.get("notes", ())), *first]
    if not open_ and not said:
        return None
    folded = (
        element("details", element("summary", f"{measure(metric)}: {len(found)}"), element("ul", found))
        for metric, found in said.items()
    )
    return element(
        "aside", element("h3", "Read with care"), element("ul", open_) if open_ else None, folded, class_="care"
    )


def _results(report: Tree, tables: Mapping[str, Mapping[str, Tree]], styles: Styles) -> Markup:
    drawn = {
        split: [results(report, table, f"{SPLITS[split]}, {KINDS[kind]}", styles) for kind, table in kinds.items()]
        for split, kinds in tables.items()
    }
    key = (
        f"▲ higher and ▼ lower than {named(report['baseline'])} (p < .05 after Holm's correction), ○ not told apart. "
        "Bold: the largest NDCG, recall and cold recall. In brackets: 95% intervals."
    )
    folded = element("details", element("summary", "Validation"), drawn["valid"]) if "valid" in drawn else None
    return join(drawn["test"], element("p", key, class_="note"), folded)


def _examples(samples: Mapping[str, Sequence[Mapping[str, Any]]], styles: Styles) -> Markup | None:
    known = {row: found for row, found in samples.items() if found}
    if not known:
        return None
    about = (
        "From the last rollout that was kept of the first seed of each row: the prompts whose completions were "
        "rewarded most differently, each with its best and its worst completions, best first. A framed code with ✓ is "
        "that of the target. Below each code stands the advantage of its step: above 0 (blue) it becomes more likely, "
        "below 0 (orange) less."
    )
    shown = max(known, key=lambda row: len(known[row][0]["completions"]))
    folded = (
        element(
            "details",
            element("summary", swatch(styles[row]) if row in styles else None, named(row)),
            (example(sample) for sample in found),
            open=row == shown,
        )
        for row, found in known.items()
    )
    return join(element("p", about, class_="note"), folded)


def _section(title: str, content: Markup) -> Markup:
    name = _anchor(title)
    return element(
        "section", element("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").rstrip("?")
