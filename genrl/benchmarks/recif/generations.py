"""Files of generations, in the form of the evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from genrl.benchmarks.recif.rows import Row, Task, make_row
from genrl.errors import DataError
from genrl.files import write_json
from genrl.given import json_of


def read_generations(path: Path) -> tuple[str, dict[str, list[str]], list[Row]]:
    """Read a file of generations, `test_generated.json` of the evaluator or of `evaluate --benchmark recif`.

    It is an object {"task_name": .., "samples": {row: {"generations": [..], "ground_truth": .., "metadata": {..}}}}.

    Returns:
        The task that the file names (empty if it names none), generations by row, and the rows as the file has them:
        without those that its run did not see.

    Raises:
        DataError: for a file that is missing, no JSON or of another form, and as `make_row`.
    """
    whole = json_of(path, "--generations")
    samples = whole.get("samples") if isinstance(whole, Mapping) else None
    if not isinstance(samples, Mapping) or not samples:
        raise DataError(
            f'{path}: no generations. Write {{"samples": {{"0": {{"generations": [..], "ground_truth": ".."}}, ..}}}}.'
        )
    generations, rows = {}, []
    for name, sample in samples.items():
        place = f"{path}, row {name}"
        texts = sample.get("generations") if isinstance(sample, Mapping) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{place}: `generations` is {str(texts)[:60]!r}. Write a list of texts, best first.")
        generations[name] = texts
        answer = str(sample.get("ground_truth") or "")
        rows.append(make_row(name, [], answer, sample.get("metadata") or {}, place))
    return str(whole.get("task_name") or ""), generations, rows


def write_generations(
    path: Path, task: Task, model: str, rows: Sequence[Row], generations: Mapping[str, Sequence[str]]
) -> None:
    """Write generations as the evaluator does, so that it can score them as well."""
    samples = {
        row.name: {"generations": list(generations[row.name]), "ground_truth": row.answer, "metadata": row.metadata}
        for row in rows
    }
    write_json(path, {"model_name": model, "task_name": task.name, "split": "test", "samples": samples})
