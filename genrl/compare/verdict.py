"""What the numbers of a comparison allow to say, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from genrl.compare.quantities import capital, titled
from genrl.compare.record import Difference, Table
from genrl.metrics.comparison import signed
from genrl.runs.stages import SUPERVISED
from genrl.runs.tables import NAMES

Direction = Literal["higher", "lower", "unclear"]
SIGNIFICANT = 0.05
"""Corrected p-values below it count as a difference."""
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


def direction(difference: Difference) -> Direction:
    """Whether a difference can be told from chance after correction, and which way it goes."""
    if difference.p_holm >= SIGNIFICANT:
        return "unclear"
    return "higher" if difference.effect > 0 else "lower"


def lead(table: Table, baseline: str) -> str:
    """The result in one sentence."""
    said = statements(table, baseline)
    found = [one.direction for one in said]
    other = named(baseline)
    if not found:
        return f"Nothing is compared: {other} is not finished, or nothing else is."
    if set(found) == {"unclear"}:
        rows = "the one row" if len(found) == 1 else f"any of the {len(found)} rows"
        return f"No difference to {other} is shown for {rows}."
    counts = {way: found.count(way) for way in WAYS if way in found}
    parts = [f"{n} {'cannot be told apart' if way == 'unclear' else _verb(n, way)}" for way, n in counts.items()]
    once = sum(one.one_seed and one.direction != "unclear" for one in said)
    care = f" Behind {once} of these differences stands one training seed: {OTHER_SEEDS}" if once else ""
    return f"Of {len(found)} rows compared with {other}, {listed(parts)}.{care}"


def statements(table: Table, baseline: str) -> list[Statement]:
    """A statement for every row that is compared with the baseline, largest effect first."""
    metric, lines = table.main, table.lines
    compared = {row: line.differences[metric] for row, line in lines.items() if metric in line.differences}
    theirs = lines[baseline].metrics[metric] if baseline in lines else None
    return [
        Statement(
            row,
            direction(compared[row]),
            _sentence(lines[row].metrics[metric], theirs, compared[row]),
            one_seed=not compared[row].seeds_covered,
        )
        for row in sorted(compared, key=lambda row: -compared[row].effect)
    ]


def remarks(kinds: Mapping[str, Table], main: str, baseline: str) -> Iterator[str]:
    """What a reader must know beside the statements on the main ranking: references, pairs, what else differs."""
    yield from _against_references(kinds[main])
    yield from _among(kinds[main])
    for kind, table in kinds.items():
        if kind != main:
            yield from _elsewhere(kinds[main], table, kind, baseline)
    yield from _other_metrics(kinds[main])


def warnings(table: Table) -> dict[str, dict[str, list[str]]]:
    """Metric -> warning -> the rows it is about."""
    said: dict[str, dict[str, list[str]]] = {}
    for row, line in table.lines.items():
        for metric, found in line.differences.items():
            for text in found.warnings:
                said.setdefault(metric, {}).setdefault(text, []).append(row)
    return said


def named(row: str) -> str:
    """Name of a row for people."""
    return NAMES.get(row, row)


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


def _verb(count: int, way: str) -> str:
    return f"{'scores' if count == 1 else 'score'} {way}"


def _sentence(ours: float | None, theirs: float | None, found: Difference) -> str:
    relative = "" if found.relative is None else f" ({signed(100 * found.relative, 1)}%)"
    interval = f"{signed(found.effect)}{relative}, interval [{signed(found.low)}, {signed(found.high)}]"
    scores = " against ".join(f"{score:.4f}" for score in (ours, theirs) if score is not None)
    text = f"{interval}, {p_text(found.p_holm)}; {scores}."
    if direction(found) != "unclear":
        return text if found.seeds_covered else f"{text} One training seed: {OTHER_SEEDS}"
    if found.low <= 0 <= found.high:
        return text
    return f"{text} The interval leaves out zero, but not by enough for so many rows."


def _against_references(table: Table) -> Iterator[str]:
    scores = {row: line.metrics[table.main] for row, line in table.lines.items()}
    known = {row: score for row, score in scores.items() if score is not None}
    rows = [row for row in known if table.lines[row].seeds]
    references = [row for row in known if row not in (*SUPERVISED, *rows)]
    if not references or not rows:
        return
    best = max(references, key=lambda row: known[row])
    above = [named(row) for row in rows if known[row] > known[best]]
    result = f"{listed(above)} {_verb(len(above), 'above it')}" if above else "No trained row reaches it"
    if len(above) == len(rows):
        result = "Every trained row scores above it"
    yield f"The best reference line is {named(best)} with {known[best]:.4f}. {result} (means, not tested)."


def _among(table: Table) -> Iterator[str]:
    """What differs between the rows asked for, a sentence per metric, and one on the metrics in which nothing does."""
    unclear = []
    for metric in dict.fromkeys(metric for pair in table.pairs for metric in pair.differences):
        found = [(pair, pair.differences[metric]) for pair in table.pairs]
        clear = [
            f"{named(pair.row)} {direction(one)} than {named(pair.other)} ({signed(one.effect)}, {p_text(one.p_holm)})"
            for pair, one in found
            if direction(one) != "unclear"
        ]
        rest = f"; {len(found) - len(clear)} of {len(found)} pairs not told apart" if len(clear) < len(found) else ""
        if clear:
            yield f"{capital(titled(metric))} among the rows asked for: {listed(clear)}{rest}."
        else:
            unclear.append(titled(metric))
    if unclear:
        pairs = "the one pair is not" if len(table.pairs) == 1 else f"none of the {len(table.pairs)} pairs is"
        yield f"Among the rows asked for {pairs} told apart in {listed(unclear)}."


def _elsewhere(main: Table, other: Table, kind: str, baseline: str) -> Iterator[str]:
    ours = {one.row: one.direction for one in statements(main, baseline)}
    theirs = {one.row: one.direction for one in statements(other, baseline) if one.row in ours}
    changed = [f"{named(row)} is {WAYS[way]}" for row, way in theirs.items() if ours[row] != way]
    ranking = "In raw rankings" if kind == "raw" else "With the history excluded"
    if changed:
        yield f"{ranking} the result is another for some rows: {listed(changed)}."
    elif theirs:
        yield f"{ranking} the result is the same for every row."


def _other_metrics(table: Table) -> Iterator[str]:
    lines = table.lines
    for metric in dict.fromkeys(metric for line in lines.values() for metric in line.differences):
        if metric == table.main:
            continue
        found = {row: line.differences[metric] for row, line in lines.items() if metric in line.differences}
        once = {row: "" if one.seeds_covered else " (one seed)" for row, one in found.items()}
        rows = {way: [named(row) + once[row] for row in found if direction(found[row]) == way] for way in WAYS}
        parts = [f"{way} for {listed(names)}" for way, names in rows.items() if names and way != "unclear"]
        words = listed(parts) if parts else "no difference is shown for any row"
        yield f"{capital(titled(metric))}: {words}."
