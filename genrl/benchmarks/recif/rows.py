"""The tasks of RecIF-Bench and their test rows: chat messages, and what the user really chose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from genrl.benchmarks.recif.sids import CODES, read_sids
from genrl.errors import ConfigError, DataError, suggest

COLUMNS = ("messages", "metadata")
YES, NO = "是", "否"
"""The answers of label prediction."""
JUDGED = ("item_understand", "rec_reason")
"""Tasks of the benchmark whose answers are texts that a language model judges."""


@dataclass(frozen=True)
class Task:
    """One of the tasks that are scored without a judge."""

    name: str
    published: int
    """Test rows that the authors report (arXiv:2512.24762)."""
    kind: Literal["items", "label"] = "items"
    """Whether it is answered by items, or by yes or no."""
    map: str = "sid2pid.json"
    """File that says which items have a SID."""
    folders: tuple[str, ...] = ()
    """Further names of its folder and file."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.folders


TASKS = {
    task.name: task
    for task in (
        Task("video", 38_781),
        Task("ad", 27_677),
        # releases of data and code disagree whether products are `product` or `goods`
        Task("product", 27_910, map="sid2iid.json", folders=("goods",)),
        Task("interactive", 1_000),
        Task("label_cond", 34_891),
        Task("label_pred", 346_190, kind="label"),
    )
}


def find_task(name: str) -> Task:
    """The task of a name, with dashes or underscores.

    Raises:
        ConfigError: with the names that there are.

    Example:
        >>> find_task("label-cond").name, find_task("goods").name
        ('label_cond', 'product')
    """
    key = name.replace("-", "_")
    found = next((task for task in TASKS.values() if key in task.names), None)
    if found is not None:
        return found
    known = ", ".join(TASKS)
    if key in JUDGED:
        raise ConfigError(
            f"--task {name}: its answers are texts that a language model judges, which is not done here. Tasks that "
            f"are scored: {known}."
        )
    raise ConfigError(f"--task {name}: RecIF-Bench has no such task.{suggest(key, TASKS)} Tasks: {known}.")


@dataclass(frozen=True)
class Row:
    """One test row."""

    name: str
    """Its number in the file, counted from 0, as the evaluator names it."""
    messages: tuple[Mapping[str, str], ...]
    """Chat messages with `role` and `content`."""
    answer: str
    """What was chosen, as text."""
    sids: tuple[int, ...]
    """SIDs in the answer, in its order."""
    items: tuple[int, ...]
    """Ids of items that were chosen, in their order; none where the file has SIDs alone."""
    metadata: Mapping[str, Any]
    """All that the file says of the row but its answer."""

    @property
    def label(self) -> int | None:
        """1 for yes, 0 for no; None for neither. A text that holds both is a yes, as in the evaluator."""
        return 1 if YES in self.answer else 0 if NO in self.answer else None


def make_row(name: str, messages: Any, answer: str, metadata: Mapping[str, Any], place: str) -> Row:  # noqa: ANN401
    """A row of plain values.

    Raises:
        DataError: for an answer with a code that does not exist, ids that are no numbers, or messages of another form.
    """
    sids = read_sids(answer)
    if None in sids:
        raise DataError(
            f"{place}: SID {sids.index(None) + 1} of the answer has a code outside 0 .. {CODES - 1}: these are not the "
            f"SIDs of RecIF-Bench, three codes of {CODES:,}. Give the files of the benchmark."
        )
    ids = metadata.get("answer_pid")
    if ids is None:
        ids = metadata.get("answer_iid", [])
    ids = _json(ids, place, "answer_pid (or answer_iid)")
    if not isinstance(ids, Sequence) or not all(isinstance(each, int) for each in ids):
        raise DataError(f"{place}: answer_pid (or answer_iid) is {str(ids)[:60]!r}. Write a list of whole numbers.")
    found = tuple(each for each in sids if each is not None)
    items = tuple(each for each in ids if each != 0)  # 0 stands for no item
    return Row(name, _messages(messages, place), answer, found, items, metadata)


def read_rows(folder: Path, task: Task, limit: int | None = None) -> tuple[list[Row], list[str]]:
    """The first test rows of a task, and the names of those that were left out because they have no answer at all.

    Args:
        folder: holds TASK/TASK_test.parquet, or that file itself.
        task: which.
        limit: rows that are read; None: all.

    Raises:
        DataError: without such a file, for one without the columns `messages` and `metadata`, and for a row that is
            damaged, by its number. The evaluator leaves damaged rows out, so that nobody knows what was divided by.
    """
    places = [path for name in task.names for path in (folder / name / _file(name), folder / _file(name))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        tried = " or ".join(str(place) for place in places)
        raise DataError(f"--data {folder}: there are no test rows of task {task.name}. Looked for {tried}.")
    rows, without = [], []
    for number, (said, about) in enumerate(islice(_cells(path), limit)):
        place = f"{path}, row {number}"
        known = _json(about, place, "metadata")
        if not isinstance(known, Mapping):
            raise DataError(f"{place}: metadata is {str(about)[:60]!r}, not an object with the key `answer`.")
        answer = known.get("answer")
        if answer is None or not str(answer).strip():
            without.append(str(number))
            continue
        rest = {key: value for key, value in known.items() if key != "answer"}
        rows.append(make_row(str(number), said, str(answer).strip(), rest, place))
    if not rows:
        raise DataError(f"{path}: no row has an answer in its metadata, so there is nothing to score.")
    return rows, without


def _file(name: str) -> str:
    return f"{name}_test.parquet"


def _cells(path: Path) -> Iterator[tuple[Any, Any]]:
    """Messages and metadata of each row."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path}: no column {' and '.join(map(repr, missing))}; columns there: "
                f"{', '.join(file.schema_arrow.names)}. Test rows of RecIF-Bench have {' and '.join(COLUMNS)}: give "
                f"the folder benchmark_data of its release."
            )
        for batch in file.iter_batches(columns=list(COLUMNS)):
            yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]} Fetch it again.") from error


def _json(value: Any, place: str, what: str) -> Any:  # noqa: ANN401
    """A value that may be written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{place}: {what} is not JSON: {error}. Mend the file or fetch it again.") from error


def _messages(value: Any, place: str) -> tuple[Mapping[str, str], ...]:  # noqa: ANN401
    """Chat messages, their contents as plain text."""
    listed = _json(value, place, "messages")
    if not isinstance(listed, Sequence) or not all(isinstance(each, Mapping) and "role" in each for each in listed):
        raise DataError(f'{place}: messages are {str(value)[:60]!r}. Write a list of {{"role": .., "content": ..}}.')
    return tuple({"role": str(each["role"]), "content": _content(each.get("content"))} for each in listed)


def _content(content: Any) -> str:  # noqa: ANN401
    """Text that stands by itself or in parts {"type": "text", "text": ..}."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    return "" if content is None else str(content)
