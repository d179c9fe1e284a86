"""Scores of generations under the rules of RecIF-Bench, with what each number was divided by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genrl.benchmarks.recif.maps import ItemMap
from genrl.benchmarks.recif.rows import NO, YES, Row, Task
from genrl.benchmarks.recif.sids import END_OF_THINKING, read_generation
from genrl.errors import DataError
from genrl.files import write_json
from genrl.metrics.functional import first_occurrences
from genrl.metrics.recif import any_hit, auc, first_hit, gold_found

METRICS: dict[str, tuple[Callable[[Tensor, Tensor, int], Tensor], str]] = {
    "pass": (any_hit, "rows in which any of the first {k} {what} is gold / rows"),
    "position1_pass": (first_hit, "rows in which any of the first {k} {what} is the first gold one / rows"),
    "recall": (gold_found, "mean over rows of |first {k} {what} and gold| / |gold|, not min({k}, |gold|)"),
}
"""Name -> function of `genrl.metrics.recif`, and what it says."""
KINDS = {"sid": ("", "SIDs"), "pid": ("pid_", "items")}
"""What is compared -> what stands before the names of its metrics, and what it is called."""


@dataclass(frozen=True)
class Scores:
    """What a table shows, in its order."""

    task: str
    metrics: dict[str, float]
    """Not a number where there is nothing to divide by."""
    definitions: dict[str, str]
    """Of each metric."""
    counts: dict[str, int]
    """What was divided by, and what is behind the misses."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The table as text: numbers with their definitions, then counts, then notes."""
        width = max(map(len, (*self.metrics, *self.counts)))
        found = [f"RecIF-Bench, task {self.task}"]
        found += [f"  {name:<{width}}  {value:.4f}  {self.definitions[name]}" for name, value in self.metrics.items()]
        found += [f"  {name:<{width}}  {value:,}" for name, value in self.counts.items()]
        return [*found, *(f"  {note}" for note in self.notes)]

    def save(self, path: Path, **further: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Write all of it as JSON; a number that does not exist is null."""
        plain = asdict(self)
        plain["metrics"] = {name: None if math.isnan(value) else value for name, value in self.metrics.items()}
        write_json(path, {**plain, **further})


def score(
    task: Task,
    rows: Sequence[Row],
    generations: Mapping[str, Sequence[str]],
    *,
    kinds: Sequence[str] = ("sid",),
    k: Sequence[int] = (1, 32),
    items: ItemMap | None = None,
) -> Scores:
    """Score generations by the names of their rows.

    Args:
        task: which.
        rows: what is divided by, whether they have generations or not.
        generations: texts of each row, best first; none for a row is a miss.
        kinds: what is compared: `sid`, or `pid`, the items of `items` that SIDs stand for.
        k: cut-offs.
        items: needed for `pid`.

    Raises:
        DataError: for generations of rows that there are not, or if no row has any.
    """
    known = {row.name for row in rows}
    strange = next((name for name in generations if name not in known), None)
    if strange is not None:
        raise DataError(
            f"there are generations for row {strange!r}, which is not among the {len(rows):,} test rows: they belong "
            f"to other rows or another task. Give the folder and the task that they were made for."
        )
    if not any(generations.values()):
        raise DataError("no row has a generation, so there is nothing to score. Give the file of a finished run.")
    if task.kind == "label":
        return _score_labels(task, rows, generations)
    return _score_items(task, rows, generations, kinds, k, items)


def _score_items(
    task: Task,
    rows: Sequence[Row],
    generations: Mapping[str, Sequence[str]],
    kinds: Sequence[str],
    k: Sequence[int],
    items: ItemMap | None,
) -> Scores:
    texts = [generations.get(row.name, ()) for row in rows]
    metrics: dict[str, float] = {}
    definitions: dict[str, str] = {}
    counts = {"rows": len(rows), "rows_without_generation": sum(not each for each in texts)}
    counts["generations"] = sum(map(len, texts))
    counts["generations_fewest"] = min(map(len, texts))
    notes = []
    for kind in kinds:
        prefix, what = KINDS[kind]
        table = _rectangle([_sid(text, kind) for text in each] for each in texts)
        if kind == "pid":
            assert items is not None  # whoever asks for items has read their map
            table = items.items_of(table)
            table = torch.where(table == 0, -1, table)  # the evaluator's 0 is no item
        named = int((table >= 0).sum())
        gold = [row.sids if kind == "sid" else row.items for row in rows]
        counts[f"{prefix}rows_without_gold"] = sum(not each for each in gold)
        counts[f"{prefix}generations_that_name_nothing"] = counts["generations"] - named
        counts[f"{prefix}generations_repeated"] = named - int(first_occurrences(table).sum())
        wanted = _rectangle(gold)
        for cut in k:
            for name, (measure, says) in METRICS.items():
                metrics[f"{prefix}{name}@{cut}"] = measure(table, wanted, cut).mean().item()
                definitions[f"{prefix}{name}@{cut}"] = says.format(k=cut, what=what)
    if "pid" in kinds and items is not None:
        notes.append(
            f"A SID stands for its most popular item after down-sampling; of {items.tied:,} SIDs with several such "
            f"items the first of the map is taken, where the evaluator draws one at random."
        )
    if counts["generations_fewest"] < max(k):
        notes.append(f"Some rows have fewer than {max(k)} generations: their places at the end are misses.")
    notes.append("Rows without generation or without gold count as 0; repeated generations use up their places.")
    return Scores(task.name, metrics, definitions, counts, tuple(notes))


def _sid(text: str, kind: str) -> int:
    """The SID that a generation names, -1 for none."""
    sid = read_generation(text, whole=kind == "sid")
    return -1 if sid is None else sid


def _rectangle(rows: Iterable[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=-1)


def _score_labels(task: Task, rows: Sequence[Row], generations: Mapping[str, Sequence[str]]) -> Scores:
    pairs = [(row.label, probability_of_yes(generations.get(row.name, ()))) for row in rows]
    usable = [(label, score) for label, score in pairs if label is not None and score is not None]
    labels = torch.tensor([label for label, _ in usable])
    scores = torch.tensor([score for _, score in usable], dtype=torch.float64)
    counts = {
        "rows": len(rows),
        "rows_scored": len(usable),
        "rows_yes": int(labels.sum()),
        "rows_without_label": sum(label is None for label, _ in pairs),
        "rows_without_generation": sum(not generations.get(row.name) for row in rows),
    }
    unreadable = sum(
        bool(generations.get(row.name)) and score is None for row, (_, score) in zip(rows, pairs, strict=True)
    )
    counts["rows_unreadable"] = unreadable
    counts["rows_tied"] = len(usable) - len(set(scores.tolist()))
    says = (
        f"area under the ROC curve of P({YES}) / (P({YES}) + P({NO})) over all scored rows together; a tie counts 1/2"
    )
    notes = ("Rows without label, generation or readable probabilities are left out, as in the evaluator.",)
    return Scores(task.name, {"auc": auc(scores, labels).item()}, {"auc": says}, counts, notes)


def probability_of_yes(texts: Sequence[str]) -> float | None:
    """The mean over generations {"是": p, "否": q} of p / (p + q); None if there are none or one cannot be read.

    Example:
        >>> probability_of_yes(['so</think>{"是": 0.5, "否": 0.5}']), probability_of_yes(['{"是": 0.3}'])
        (0.5, None)
    """
    found = []
    for text in texts:
        try:
            said = json.loads(text.rpartition(END_OF_THINKING)[2])
            yes, no = float(said[YES]), float(said[NO])
            found.append(yes / (yes + no))
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            return None
    value = sum(found) / len(found) if found else math.nan
    return value if math.isfinite(value) else None
