"""The report of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from genrl.training.report import COLUMNS, NAMES

Tree = Mapping[str, Any]
HEADS = {**COLUMNS, "top1pct_share": "Top1%"}
READING = """\
`N` is NDCG, `R` recall, `Ent` the entropy of the categories of a list in bits, `Cold` recall of cold targets, `Cov` the
share of the catalogue that is recommended, `Top1%` the share of slots that its 1% most recommended items take. *Raw*
rankings may name items of the history. The interval beside a mean is Student's over training seeds; that of a
difference covers the choice of users and of seeds (95%). `p` is corrected for the number of rows (Holm). All rows begin
with the same `align` weights: the noise of supervised training is not covered."""


def markdown(report: Tree) -> str:
    """Write a report as Markdown.

    Args:
        report: as `comparison_report` makes it.
    """
    parts = [f"# Comparison: {report['experiment']}", *_state(report), READING]
    for split, kinds in report["tables"].items():
        for kind, table in kinds.items():
            parts += _table(table, f"{split}, {'history excluded' if kind == 'excluded' else kind}", report["baseline"])
    parts += _choices(report["choices"])
    parts += [
        "## Curves",
        "Mean over seeds; the band reaches from the least seed to the largest.",
        "![curves](report.png)",
    ]
    parts += ["## Cost", _rows(["", "seconds of the stage", "peak MiB"], _costs(report["cost"]))]
    parts += ["## Made with", *_origin(report)]
    return "\n\n".join(parts) + "\n"


def _state(report: Tree) -> Iterator[str]:
    if report["unfinished"]:
        yield f"**Partial**: {len(report['unfinished'])} run(s) are not finished: {', '.join(report['unfinished'])}."


def _table(table: Tree, title: str, baseline: str) -> Iterator[str]:
    top, lines = table["k"], table["lines"]
    names = list(next(iter(lines.values()))["metrics"])
    heads = [f"{HEADS[metric]}@{cut}" for metric, cut in (name.split("@") for name in names)]
    yield f"## {title} ({table['users']} users)"
    yield _rows(
        ["", "seeds", heads[0], f"N@{top} minus {baseline}", "relative", "p", *heads[1:]],
        ([_name(name), *_cells(line, names)] for name, line in lines.items()),
    )
    warnings = [
        f"- {_name(name)}: {text}"
        for name, line in lines.items()
        for text in line.get("difference", {}).get("warnings", [])
    ]
    if warnings:
        yield "\n".join(warnings)


def _cells(line: Tree, names: list[str]) -> Iterator[str]:
    first, *others = (line["metrics"][name] for name in names)
    low, high = line.get("interval", (None, None))
    yield str(len(line["seeds"]) or "")
    yield _decimal(first) + ("" if low is None else f" [{low:.4f}, {high:.4f}]")
    difference = line.get("difference")
    if difference is None:
        yield from ("", "", "")
    else:
        yield f"{difference['effect']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        yield "-" if difference["relative"] is None else f"{difference['relative']:+.1%}"
        yield f"{difference['p_holm']:.3f}" if difference["p_holm"] >= 0.001 else "<.001"
    yield from map(_decimal, others)


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


def _costs(cost: Tree) -> Iterator[list[str]]:
    for name, value in cost.items():
        yield [name, f"{value['seconds']:.1f}", f"{value['peak_mib']:.0f}"]


def _origin(report: Tree) -> Iterator[str]:
    data, sid = report["data"], report["sid"]
    codes = " x ".join(map(str, sid["codes"]))
    yield f"data {data['name']} {data['fingerprint']}; Semantic IDs {codes}, {sid['fingerprint']}; {report['align']}"
    yield ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    yield "\n".join(["```bash", *report["commands"].values(), "```"])


def _rows(heads: list[str], rows: Any) -> str:  # noqa: ANN401 (any iterable of lists of cells)
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
