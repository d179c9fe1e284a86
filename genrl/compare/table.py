"""The report of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genrl.compare.html.verdict import statements
from genrl.runs.tables import COLUMNS, NAMES

Tree = Mapping[str, Any]
HEADS = {**COLUMNS, "top1pct_share": "Top1%"}
TITLES = {"recall": "recall", "cold_recall": "cold recall"}
READING = """\
`N` is NDCG, `R` recall, `Ent` the entropy of the categories of a list in bits, `Cold` recall of cold targets, `Cov` the
share of the catalogue that is recommended, `Top1%` the share of slots that its 1% most recommended items take. *Raw*
rankings may name items of the history. The interval beside a mean is Student's over training seeds; that of a
difference covers the choice of users and of seeds (95%); with one seed, of users only. `p` is corrected for the number
of rows, for each metric (Holm). The noise of supervised training is not covered: seeds are those of stage `rl`."""


THINKING = """\
Test rows, raw ranking. The row without thinking was given as many training tokens and, by a wider beam, about as many
multiply-adds per request. Supervised tokens are all that went through the model, those of rl are of completions. A
request is one user at a time; its time is the median, both rows in turn in one process, and depends on the machine."""


def markdown(report: Tree) -> str:
    """Write a report as Markdown.

    Args:
        report: as `genrl.compare.report` makes it.
    """
    parts = [f"# Comparison: {report['experiment']}", *_state(report), READING, *_thinking(report)]
    for split, kinds in report["tables"].items():
        for kind, table in kinds.items():
            parts += _table(table, f"{split}, {'history excluded' if kind == 'excluded' else kind}", report["baseline"])
    parts += _choices(report["choices"])
    if any(facts["kind"] == "objective" for facts in report["rows"].values()):
        parts += [
            "## Curves",
            "Mean over seeds; the band reaches from the least seed to the largest.",
            "![curves](report.png)",
        ]
    parts += ["## Cost", _rows(["", "seconds of the stage", "peak MiB", "tokens"], _costs(report))]
    parts += ["## Made with", *_origin(report)]
    return "\n\n".join(parts) + "\n"


def _state(report: Tree) -> Iterator[str]:
    if report["unfinished"]:
        yield f"**Partial**: {len(report['unfinished'])} run(s) are not finished: {', '.join(report['unfinished'])}."
    yield from (f"**Note**: {text}" for text in report["notes"])


def _thinking(report: Tree) -> Iterator[str]:
    """What thinking brings and what it costs, where rows were compared for that."""
    if "thinking" not in report:
        return
    table = report["tables"]["test"]["raw"]
    lines, names = table["lines"], [f"ndcg@{table['k']}", f"recall@{table['k']}"]
    facts = report["thinking"]
    yield "## Does thinking pay?"
    yield THINKING
    yield from (
        f"**{_name(one.row)}**: {one.text}" for one in statements(table, report["baseline"]) if one.row in facts
    )
    yield _rows(
        ["", *(cell for name in names for cell in (_head(name), f"minus {_name(report['baseline'])}", "p"))],
        ([_name(row), *_quality(lines[row], names)] for row in facts),
    )
    training, request = ("training tokens, supervised", "rl", "rl prompts"), ("tokens of a request", "multiply-adds")
    yield _rows(
        ["", *training, "beam", *request, "ms", "ms, relative"],
        ([_name(row), *_expense(spent, facts)] for row, spent in facts.items()),
    )


def _quality(line: Tree, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        difference = line.get("differences", {}).get(name)
        low, high = line["interval"] if name == names[0] else (None, None)
        yield _decimal(line["metrics"][name]) + ("" if low is None else f" [{low:.4f}, {high:.4f}]")
        effect, _, p_value = _difference(difference)
        yield effect
        yield p_value


def _expense(spent: Tree, facts: Tree) -> Iterator[str]:
    request = spent["request"]
    yield f"{sum(tokens for stage, tokens in spent['training'].items() if stage != 'rl'):,}"
    yield f"{spent['training']['rl']:,}"
    yield f"{spent['rl_prompts']:,}"
    yield str(spent["beam"])
    yield f"{request['tokens']:,.1f}"
    yield f"{request['multiply_adds']:,}"
    yield f"{request['milliseconds']:.1f}"
    yield f"{request['milliseconds'] / next(iter(facts.values()))['request']['milliseconds']:.2f}"


def _table(table: Tree, title: str, baseline: str) -> Iterator[str]:
    top, lines = table["k"], table["lines"]
    names = list(next(iter(lines.values()))["metrics"])
    heads = [_head(name) for name in names]
    yield f"## {title} ({table['users']} users)"
    yield _rows(
        ["", "seeds", heads[0], f"N@{top} minus {_name(baseline)}", "relative", "p", *heads[1:]],
        ([_name(row), *_cells(line, names)] for row, line in lines.items()),
    )
    yield from _warnings(lines, [names[0]])
    yield from _further(table, title, baseline, names[0])


def _further(table: Tree, title: str, baseline: str, main: str) -> Iterator[str]:
    """Differences of recall and cold recall, where there are some."""
    lines = {row: line for row, line in table["lines"].items() if "differences" in line}
    names = [name for line in list(lines.values())[:1] for name in line["differences"] if name != main]
    if not names:
        return
    yield f"### {title}: {' and '.join(TITLES[name.partition('@')[0]] for name in names)} against {_name(baseline)}"
    if table["cold_rows"] is not None:
        few = "" if len(names) > 1 else " Too few for a difference of cold recall."
        yield f"Of {table['users']} users, {table['cold_rows']} have a cold target.{few}"
    yield _rows(
        ["", *(cell for name in names for cell in (f"{_head(name)} minus {_name(baseline)}", "relative", "p"))],
        (
            [_name(row), *(cell for name in names for cell in _difference(line["differences"][name]))]
            for row, line in lines.items()
        ),
    )
    yield from _warnings(lines, names, known=[main])


def _warnings(lines: Tree, names: Sequence[str], known: Sequence[str] = ()) -> Iterator[str]:
    """Warnings on some metrics that were not given on others already; equal ones of several rows stand in one line."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row, line in lines.items():
        found = line.get("differences", {})
        before = [text for name in known for text in found.get(name, {}).get("warnings", [])]
        for name in names:
            for text in found.get(name, {}).get("warnings", []):
                if text not in before:
                    rows.setdefault((_head(name), text), []).append(_name(row))
    if rows:
        yield "\n".join(f"- {', '.join(found)}, {head}: {text}" for (head, text), found in rows.items())


def _cells(line: Tree, names: list[str]) -> Iterator[str]:
    first, *others = (line["metrics"][name] for name in names)
    low, high = line.get("interval", (None, None))
    yield str(len(line["seeds"]) or "")
    yield _decimal(first) + ("" if low is None else f" [{low:.4f}, {high:.4f}]")
    yield from _difference(line.get("differences", {}).get(names[0]))
    yield from map(_decimal, others)


def _difference(found: Tree | None) -> Iterator[str]:
    """Difference with its interval, relative, p; empty cells where there is none."""
    if found is None:
        yield from ("", "", "")
        return
    yield f"{found['effect']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
    yield "-" if found["relative"] is None else f"{found['relative']:+.1%}"
    yield f"{found['p_holm']:.3f}" if found["p_holm"] >= 0.001 else "<.001"


def _choices(choices: Tree) -> Iterator[str]:
    if not choices:
        return
    yield "## Chosen on validation"
    yield "Each point was run with the first seed; the best one was then run with all. Test was not looked at."
    cells = []
    for row, choice in choices.items():
        for point in choice["points"]:
            written = ", ".join(f"{name} {value}" for name, value in point["point"].items())
            score = "not finished" if point["score"] is None else f"{point['score']:.4f}"
            cells.append([row, written, score, "chosen" if point["point"] == choice["chosen"] else ""])
    yield _rows(["", "point", next(iter(choices.values()))["metric"], ""], cells)


def _costs(report: Tree) -> Iterator[list[str]]:
    for row, value in report["cost"].items():
        tokens = (report["rows"].get(row, {}).get("spent") or {}).get("tokens")
        yield [
            _name(row),
            f"{value['seconds']:.1f}",
            f"{value['peak_mib']:.0f}",
            "" if tokens is None else f"{tokens:,}",
        ]


def _origin(report: Tree) -> Iterator[str]:
    data, sid = report["data"], report["sid"]
    codes = " x ".join(map(str, sid["codes"]))
    parts = [f"data {data['name']} {data['fingerprint']}", f"Semantic IDs {codes}, {sid['fingerprint']}"]
    yield "; ".join([*parts, *report["shared"].values()])
    yield "\n".join(
        f"- {_name(row)}: {facts['title'] or facts['name']}" + (f" ({facts['paper']})" if facts["paper"] else "")
        for row, facts in report["rows"].items()
    )
    yield ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    yield "\n".join(["```bash", *report["commands"].values(), "```"])


def _rows(heads: list[str], rows: Any) -> str:  # noqa: ANN401 (any iterable of lists of cells)
    return "\n".join([_row(heads), f"|{'---|' * len(heads)}", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    """A row of a table; a bar in a name would begin another cell."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _head(name: str) -> str:
    """Short head of a metric, `ndcg@10` -> `N@10`."""
    metric, cut = name.split("@")
    return f"{HEADS[metric]}@{cut}"


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
