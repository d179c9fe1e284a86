"""Reads the user's files through `datasets` and remembers where each row came from, so that errors can say it."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.errors import DataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

FORMS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}


@dataclass(frozen=True)
class Table:
    """Rows of one or several files of one form, as Arrow columns."""

    source: str
    """What the user named: a file, a folder or a hub data set."""
    data: pa.Table
    files: tuple[tuple[str, Sequence[int]], ...]
    """(file, its rows, counted from 0 without a header), in the order of the table; blank CSV lines are left out."""

    def __len__(self) -> int:
        return self.data.num_rows

    def column(self, name: str, option: str) -> pa.ChunkedArray:
        """One column.

        Args:
            name: column of the file.
            option: configuration key that named it, for the message.

        Raises:
            DataError: if the files have no such column, with those they have.
        """
        have = self.data.column_names
        if name not in have:
            raise DataError(
                f"{self.source}: no column {name!r} (asked for by {option}).{suggest(name, have)} "
                f"Columns there: {', '.join(have)}. Set {option} to one of them."
            )
        return self.data.column(name)

    def place(self, row: int) -> str:
        """File and line of a row, counted as a person would: from 1, the header of a CSV file included."""
        for name, rows in self.files:
            if row < len(rows):
                return _place(name, rows[row])
            row -= len(rows)
        raise IndexError(row)


def read_table(source: str, option: str) -> Table:
    """Read a parquet, CSV or JSONL file, a folder of such files, or a hub data set.

    Nothing is written beside the user's files: local files are prepared in a temporary cache and kept in memory.

    Args:
        source: path, or name of a hub data set (its `train` split is read).
        option: configuration key that named it, for messages.

    Raises:
        DataError: if there is nothing to read, or a file cannot be parsed (with the line, where it can be found).
    """
    import pyarrow as pa

    path = Path(source).expanduser()
    if not path.exists():
        return _read_hub(source, option)
    files = _files(path, option)
    parts = [_without_blank_lines(_read_file(file), file) for file in files]
    data = pa.concat_tables([part for part, _ in parts], promote_options="permissive")
    return Table(source, data, tuple((str(file), rows) for file, (_, rows) in zip(files, parts, strict=True)))


def _files(path: Path, option: str) -> list[Path]:
    """The files to read: the path itself, or those of a folder, which must be of one form."""
    if path.is_file():
        if path.suffix.lower() not in FORMS:
            raise DataError(
                f"{path}: unknown form {path.suffix or '(no suffix)'!r} ({option}). Known: {', '.join(FORMS)}. "
                f"Convert the file, or rename it to what it is."
            )
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in FORMS)
    forms = {FORMS[file.suffix.lower()] for file in files}
    if not files:
        raise DataError(f"{path}: no file of a known form in this folder ({option}). Known: {', '.join(FORMS)}.")
    if len(forms) > 1:
        raise DataError(
            f"{path}: files of several forms ({', '.join(sorted(forms))}) in one folder ({option}). "
            f"Name one file, or a folder that holds one form."
        )
    return files


def _read_file(path: Path) -> pa.Table:
    form = FORMS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if form == "csv":
        options = _csv_options(path)
    with tempfile.TemporaryDirectory(prefix="genrl-") as cache, _quiet() as datasets:
        try:
            # Dataset.from_* reads alone; load_dataset would also report the use to a counter on the network.
            read = getattr(datasets.Dataset, f"from_{form}")
            loaded = read(str(path), keep_in_memory=True, cache_dir=cache, **options)
        except Exception as error:  # every reader raises its own family; the message below replaces them all
            raise DataError(_parse_message(path, form, error)) from error
    return loaded.with_format("arrow")[:]


def _without_blank_lines(data: pa.Table, path: Path) -> tuple[pa.Table, Sequence[int]]:
    """Drop the rows of a CSV file that have no value at all; return the numbers of the others."""
    if FORMS[path.suffix.lower()] != "csv":
        return data, range(data.num_rows)
    import numpy as np

    filled = ~np.logical_and.reduce([column.is_null().to_numpy() for column in data.columns])
    if filled.all():
        return data, range(data.num_rows)
    return data.filter(filled), np.flatnonzero(filled).tolist()


def _read_hub(source: str, option: str) -> Table:
    if Path(source).suffix.lower() in FORMS or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: no such file or folder ({option}). Check the path; it is relative to {Path.cwd()}.")
    with _quiet() as datasets:
        try:
            loaded = datasets.load_dataset(source, split="train", keep_in_memory=True)
        except Exception as error:
            raise DataError(
                f"{source}: neither a file, nor a folder, nor a hub data set that can be loaded ({option}): "
                f"{_reason(error)} Check the path, or the name and the network."
            ) from error
    return Table(source, loaded.with_format("arrow")[:], ((source, range(loaded.num_rows)),))


def _csv_options(path: Path) -> dict[str, Any]:
    """Read every CSV column as text: an id like 007 or NA must stay what it is."""
    from datasets import Features, Value

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream, delimiter=delimiter), None)
    if not header:
        raise DataError(f"{path}: empty file. The first line of a CSV file names its columns.")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}:1: column {twice!r} is named twice. Give each column its own name.")
    return {
        "features": Features({name: Value("string") for name in header}),
        "sep": delimiter,
        "encoding": "utf-8-sig",
        "keep_default_na": False,
        "na_values": [""],
        "skip_blank_lines": False,
    }


@contextmanager
def _quiet() -> Iterator[Any]:
    """`datasets` without progress bars and without its own error lines."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _parse_message(path: Path, form: str, error: Exception) -> str:
    """Say which line cannot be parsed, if it can be found, else what the reader said."""
    if "corresponds to no data" in str(error):
        return f"{path}: no rows. Give a file with at least one row."
    if form == "json":
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                problem = _json_problem(line)
                if problem:
                    return f"{path}:{number}: {problem} A JSONL file holds one object per line; mend or drop the line."
    return f"{path}: cannot be read as {form}: {_reason(error)} Mend the file, or convert it to parquet."


def _json_problem(line: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})."
    return "" if isinstance(value, dict) else f"a {type(value).__name__}, not an object."


def _reason(error: BaseException) -> str:
    """First line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(".") + "."


def _place(name: str, row: int) -> str:
    path = Path(name)
    form = FORMS.get(path.suffix.lower(), "")
    if form == "csv" and path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            start = 1
            for number, _ in enumerate(reader):  # a quoted field may span lines, so lines are counted by the parser
                if number == row + 1:
                    return f"{name}:{start}"
                start = reader.line_num + 1
    if form == "json" and path.is_file():
        with path.open(encoding="utf-8") as stream:
            lines = (number for number, line in enumerate(stream, start=1) if line.strip())
            for number, line_number in enumerate(lines):
                if number == row:
                    return f"{name}:{line_number}"
    return f"{name}, row {row + 1}"
