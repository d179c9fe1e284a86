"""What the numbers of a comparison allow to say, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from genrl.runs.stages import SUPERVISED
from genrl.runs.tables import NAMES

Tree = Mapping[str, Any]
Direction = Literal["higher", "lower", "unclear"]
SIGNIFICANT = 0.05
"""Corrected p-values below it count as a difference."""
MEASURES = {"ndcg": "NDCG", "recall": "recall", "cold_recall": "cold recall"}
OTHER_SEEDS = "other seeds may show something else."
WAYS: Mapping[Direction, str] = {"higher": "higher", "lower": "lower", "unclear": "not told apart"}


@dataclass(frozen=True)
class Statement:
    """What one row's difference to the baseline allows to say."""

    row: str
    direction: Direction
    text: str
    one_seed: bool
    """Whether the interval lacks the noise of training, as one side was trained once."""


def differences(line: Tree, cutoff: int) -> Mapping[str, Tree]:
    """Metric -> difference of a row to the baseline, those that are known; empty for the baseline itself."""
    found = line.get("differences") or ({f"ndcg@{cutoff}": line["difference"]} if "difference" in line else {})
    needed = ("effect", "low", "high", "p_holm")
    return {name: value for name, value in found.items() if all(value.get(key) is not None for key in needed)}


def direction(difference: Tree) -> Direction:
    """Whether a difference can be told from chance after correction, and which way it goes."""
    if difference["p_holm"] >= SIGNIFICANT:
        return "unclear"
    return "higher" if difference["effect"] > 0 else "lower"


def lead(table: Tree, baseline: str) -> str:
    """The result in one sentence."""
    found = [one.direction for one in statements(table, baseline)]
    other = named(baseline)
    if not found:
        return f"Nothing is compared: {other} is not finished, or nothing else is."
    if set(found) == {"unclear"}:
        rows = "the one row" if len(found) == 1 else f"any of the {len(found)} rows"
        return f"No difference to {other} is shown for {rows}."
    counts = ((found.count(way), way) for way in WAYS)
    parts = [f"{count} {_verb(count, way)}" for count, way in counts if count]
    once = sum(one.one_seed and one.direction != "unclear" for one in statements(table, baseline))
    care = f" Behind {once} of these differences stands one training seed: {OTHER_SEEDS}" if once else ""
    return f"Of {len(found)} rows compared with {other}, {listed(parts)}.{care}"


def statements(table: Tree, baseline: str) -> list[Statement]:
    """A statement for every row that is compared with the baseline, largest effect first."""
    metric = f"ndcg@{table['k']}"
    lines = table["lines"]
    found = {row: differences(line, table["k"]).get(metric) for row, line in lines.items()}
    compared = {row: value for row, value in found.items() if value is not None}
    theirs = lines[baseline]["metrics"][metric] if baseline in lines else None
    return [
        Statement(
            row,
            direction(compared[row]),
            _sentence(lines[row]["metrics"][metric], theirs, compared[row]),
            _one_seed(compared[row]),
        )
        for row in sorted(compared, key=lambda row: -compared[row]["effect"])
    ]


def remarks(kinds: Mapping[str, Tree], main: str, baseline: str) -> Iterator[str]:
    """What a reader must know beside the statements: reference lines, other rankings, other metrics.

    Args:
        kinds: kind of ranking -> table of the test part.
        main: the kind that the statements are about.
        baseline: the row that the others are compared with.
    """
    yield from _against_references(kinds[main])
    for kind, table in kinds.items():
        if kind != main:
            yield from _elsewhere(kinds[main], table, kind, baseline)
    yield from _other_metrics(kinds[main])


def warnings(table: Tree) -> dict[str, dict[str, list[str]]]:
    """Metric -> warning -> the rows it is about."""
    said: dict[str, dict[str, list[str]]] = {}
    for row, line in table["lines"].items():
        for metric, found in differences(line, table["k"]).items():
            for text in found.get("warnings", ()):
                said.setdefault(metric, {}).setdefault(text, []).append(row)
    return said


def named(row: str) -> str:
    """Name of a row for people."""
    return NAMES.get(row, row)


def measure(metric: str) -> str:
    """Name of a metric for people.

    Example:
        >>> measure("cold_recall@10")
        'cold recall@10'
    """
    name, _, cutoff = metric.partition("@")
    return f"{MEASURES.get(name, name)}@{cutoff}"


def signed(value: float, decimals: int = 4) -> str:
    """A number with its sign, as print has it.

    Example:
        >>> signed(-0.01)
        '−0.0100'
    """
    return f"{value:+.{decimals}f}".replace("-", "−")


def p_text(value: float) -> str:
    """A corrected p-value for a sentence.

    Example:
        >>> p_text(0.0001), p_text(0.25)
        ('p < .001', 'p = .250')
    """
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace(" 0.", " .")


def listed(words: Sequence[str]) -> str:
    """Words with commas and an `and`.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _verb(count: int, way: Direction) -> str:
    if way == "unclear":
        return "cannot be told apart"
    return f"{'scores' if count == 1 else 'score'} {way}"


def _sentence(ours: float, theirs: float | None, found: Tree) -> str:
    relative = "" if found.get("relative") is None else f" ({signed(100 * found['relative'], 1)}%)"
    interval = f"{signed(found['effect'])}{relative}, interval [{signed(found['low'])}, {signed(found['high'])}]"
    scores = f"; {ours:.4f}" + ("" if theirs is None else f" against {theirs:.4f}")
    text = f"{interval}, {p_text(found['p_holm'])}{scores}."
    if direction(found) == "unclear" and not found["low"] <= 0 <= found["high"]:
        return f"{text} The interval leaves out zero, but not by enough for so many rows."
    return f"{text} One training seed: {OTHER_SEEDS}" if _one_seed(found) and direction(found) != "unclear" else text


def _one_seed(found: Tree) -> bool:
    return not found.get("seeds_covered", True)  # older reports do not say


def _against_references(table: Tree) -> Iterator[str]:
    lines, metric = table["lines"], f"ndcg@{table['k']}"
    scores = {row: line["metrics"][metric] for row, line in lines.items() if line["metrics"][metric] is not None}
    rows = [row for row in scores if lines[row]["seeds"]]
    references = [row for row in scores if row not in SUPERVISED and not lines[row]["seeds"]]
    if not references or not rows:
        return
    best = max(references, key=lambda row: scores[row])
    above = [row for row in rows if scores[row] > scores[best]]
    if len(above) == len(rows):
        result = "Every trained row scores above it"
    elif above:
        result = f"{listed([named(row) for row in above])} {'scores' if len(above) == 1 else 'score'} above it"
    else:
        result = "No trained row reaches it"
    yield f"The best reference line is {named(best)} with {scores[best]:.4f}. {result} (means, not tested)."


def _elsewhere(main: Tree, other: Tree, kind: str, baseline: str) -> Iterator[str]:
    ours = {one.row: one.direction for one in statements(main, baseline)}
    theirs = {one.row: one.direction for one in statements(other, baseline) if one.row in ours}
    changed = [f"{named(row)} is {WAYS[way]}" for row, way in theirs.items() if ours[row] != way]
    ranking = "In raw rankings" if kind == "raw" else "With the history excluded"
    if changed:
        yield f"{ranking} the result is another for some rows: {listed(changed)}."
    elif theirs:
        yield f"{ranking} the result is the same for every row."


def _other_metrics(table: Tree) -> Iterator[str]:
    found = {row: differences(line, table["k"]) for row, line in table["lines"].items()}
    metrics = dict.fromkeys(metric for values in found.values() for metric in values if not metric.startswith("ndcg@"))
    for metric in metrics:
        ways = {row: direction(values[metric]) for row, values in found.items() if metric in values}
        once = {row: " (one seed)" if _one_seed(found[row][metric]) else "" for row in ways}
        rows = {way: [named(row) + once[row] for row in ways if ways[row] == way] for way in ("higher", "lower")}
        parts = [f"{way} for {listed(names)}" for way, names in rows.items() if names]
        words = listed(parts) if parts else "no difference is shown for any row"
        yield f"{measure(metric)[0].upper()}{measure(metric)[1:]}: {words}."
