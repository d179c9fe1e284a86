"""Where the numbers of a comparison come from: cost, choices, objectives, commands and versions, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrl.compare.html.markup import Markup, element, join, scrolling
from genrl.compare.html.svg import Look, swatch
from genrl.compare.html.verdict import named

Tree = Mapping[str, Any]
UNITS = ("steps", "prompts", "completions", "tokens")
READING = {
    "Rows": "Objectives begin with the same weights, those of the last stage before rl, and see the same data and "
    "prompts; only the objective (and what its row sets) changes. Where thinking is compared, each row has stages of "
    "its own. The noise of supervised training is not covered by any interval.",
    "History excluded, raw": "Raw rankings may name items that the user has already seen; the other kind takes them "
    "out and closes the gap. Compare only numbers of one kind.",
    "NDCG, recall": "Every row is ranked against the whole catalogue. Recall@K is the share of users whose next item "
    "is among the first K; NDCG@K counts a hit less the further down it stands.",
    "Cold recall": "Recall of users whose next item is among the items with the fewest training interactions. There "
    "are few such users, so look at their number first.",
    "Entropy, coverage, top 1%": "Entropy of the categories of a list in bits; share of the catalogue that is "
    "recommended to anybody; share of all recommended places that go to the 1% most recommended items.",
    "Interval of a mean": "Student's 95% interval over training seeds: other seeds, the same users.",
    "Interval of a difference": "95%, for other users and other seeds, paired over users. Where one side was "
    "trained once, the noise of its training is not in it.",
    "p": "Corrected by Holm's rule for the number of rows, in each metric and kind of ranking apart: if everything "
    "below .05 is called a difference, the probability of even one false call is at most 5%, as far as the intervals "
    "go: with one seed that is for other users, not for other seeds.",
    "Not told apart": "It does not mean equal. The interval says which changes the data allow.",
}


def cost(report: Tree, styles: Mapping[str, Look]) -> Markup | None:
    """What the stage of each row took."""
    if not report["cost"]:
        return None
    spent = {row: facts.get("spent") or {} for row, facts in report.get("rows", {}).items()}
    units = [unit for unit in UNITS if any(amounts.get(unit) is not None for amounts in spent.values())]
    longest, most = (max(value[name] for value in report["cost"].values()) or 1 for name in ("seconds", "peak_mib"))

    def line(row: str, value: Tree) -> Markup:
        amounts = (spent.get(row, {}).get(unit) for unit in units)
        return element(
            "tr",
            element("th", swatch(styles[row]) if row in styles else None, named(row), scope="row"),
            (element("td", "–" if amount is None else f"{amount:,}") for amount in amounts),
            element("td", f"{value['seconds']:,.1f} s", _bar(value["seconds"] / longest)),
            element("td", f"{value['peak_mib']:,.0f} MiB", _bar(value["peak_mib"] / most)),
        )

    return scrolling(
        "What the stage of each row took: amounts of one run, mean seconds and largest memory over seeds; "
        "of a run that was killed, since its last start",
        _heads("row", *units, "seconds", "peak memory"),
        (line(row, value) for row, value in report["cost"].items()),
    )


def thinking(report: Tree, styles: Mapping[str, Look]) -> Markup | None:
    """What thinking costs, where rows were compared for that; what it brings stands in the results."""
    facts = report.get("thinking")
    if not facts:
        return None
    first = next(iter(facts.values()))["request"]["milliseconds"]

    def line(row: str, spent: Tree) -> Markup:
        training, request = spent["training"], spent["request"]
        cells = (
            f"{sum(training.values()) - training['rl']:,}",
            f"{training['rl']:,}",
            f"{spent['rl_prompts']:,}",
            f"{spent['beam']}",
            f"{request['tokens']:,.1f}",
            f"{request['multiply_adds']:,}",
            f"{request['milliseconds']:,.1f} ({request['milliseconds'] / first:.2f} x)",
        )
        name = element("th", swatch(styles[row]) if row in styles else None, named(row), scope="row")
        return element("tr", name, (element("td", cell) for cell in cells))

    about = (
        "The row without thinking was given as many training tokens and, by a wider beam, about as many multiply-adds "
        "per request. Supervised tokens are all that went through the model, those of rl are of completions. A request "
        "is one user at a time; its time is the median, both rows in turn in one process."
    )
    heads = _heads(
        *("row", "supervised tokens", "rl tokens", "rl prompts"),
        *("beam", "tokens of a request", "multiply-adds", "milliseconds"),
    )
    lines = (line(row, spent) for row, spent in facts.items())
    return join(element("p", about, class_="note"), scrolling("What each row spent", heads, lines))


def choices(chosen: Tree) -> Markup | None:
    """What was chosen from grids, with the scores on validation."""
    if not chosen:
        return None
    rows = (
        element(
            "tr",
            element("th", named(row), scope="row"),
            element("td", ", ".join(f"{name} {value}" for name, value in point["point"].items())),
            element("td", "not finished" if point["score"] is None else f"{point['score']:.4f}"),
            element("td", "✓ chosen" if point["point"] == choice["chosen"] else ""),
        )
        for row, choice in chosen.items()
        for point in choice["points"]
    )
    about = "Each point was run with the first seed; the best one was then run with all. Test was not looked at."
    heads = _heads("row", "point of the grid", next(iter(chosen.values()))["metric"], "")
    return join(
        element("p", about, class_="note"), scrolling("Points of the grids and their scores on validation", heads, rows)
    )


def objectives(report: Tree) -> Markup | None:
    """The pieces and rewards of each row, or the options of a baseline."""
    return join(_pieces(row, facts) for row, facts in report.get("rows", {}).items()) or None


def origin(report: Tree) -> Markup:
    """Commands, data, Semantic IDs and versions."""
    data, sid = report["data"], report["sid"]
    codes = " x ".join(map(str, sid["codes"]))
    facts = {
        "data": f"{data['name']}, fingerprint {data['fingerprint']}",
        "Semantic IDs": f"{codes} codes, fingerprint {sid['fingerprint'] or 'not kept'}",
        "start of all objectives": ", ".join(report["shared"].values()) or "none",
        **report["versions"],
    }
    return join(
        element("h3", "Commands, one per run"),
        element("pre", (element("code", command, class_="command") for command in report["commands"].values())),
        element("h3", "Data and versions"),
        _described({name: element("code", str(value)) for name, value in facts.items()}),
    )


def reading() -> Markup:
    """What the numbers mean."""
    return _described(READING)


def _pieces(row: str, facts: Tree) -> Markup:
    title = " ".join(filter(None, [facts.get("title"), f"({facts['paper']})" if facts.get("paper") else ""]))
    rewards = "; ".join(
        " ".join([name, *(f"{key}={value}" for key, value in (options or {}).items())])
        for name, options in (facts.get("rewards") or {}).items()
    )
    options = "\n".join(f"{name} = {value}" for name, value in facts.get("options", {}).items())
    pieces = facts.get("pieces") or options
    return element(
        "details",
        element("summary", named(row), f": {title}" if title else None),
        element("p", f"Rewards: {rewards}.") if rewards else None,
        element("pre", pieces) if pieces else None,
    )


def _described(facts: Mapping[str, str]) -> Markup:
    parts = (join(element("dt", name), element("dd", text)) for name, text in facts.items())
    return element("dl", parts, class_="origin")


def _heads(*names: str) -> Markup:
    return element("tr", (element("th", name, scope="col") for name in names))


def _bar(share: float) -> Markup:
    """A bar as long as a share of 60 units."""
    bar = element("rect", width=max(1.0, 60.0 * share), height=10, rx=2)
    return element("svg", bar, class_="bar", width=60, height=10, aria_hidden="true", focusable="false")
