"""From the user's tables to clean columns: ids as text, times as ranks, bad rows named by file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from genrl.catalog.reading import Table, read_table
from genrl.catalog.sequences import Role
from genrl.config.schema import ColumnsConfig
from genrl.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray

SPLIT_NAMES = {
    "train": Role.TRAIN,
    "valid": Role.VALID,
    "validation": Role.VALID,
    "val": Role.VALID,
    "test": Role.TEST,
    "history_only": Role.HISTORY,
}


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The item table as read: one entry per item, in the order of the file."""

    item_ids: Sequence[str]
    titles: Sequence[str]
    categories: Sequence[str | None]
    texts: Sequence[str]
    attributes: Mapping[str, list[str]] = field(default_factory=dict)

    def take(self, rows: Array) -> ItemTable:
        """Some items, in the order of `rows`."""
        columns = (self.item_ids, self.titles, self.categories, self.texts)
        attributes = {name: [values[row] for row in rows] for name, values in self.attributes.items()}
        return ItemTable(*([column[row] for row in rows] for column in columns), attributes)


@dataclass(frozen=True, eq=False)
class Events:
    """Interactions as columns of numbers, in the order of the file until they are sorted."""

    users: Array
    """[N] int64 index into user_ids."""
    items: Array
    """[N] int64 index into item_ids."""
    order: Array
    """[N] int64 sort key inside a user: position, else time, else the row."""
    times: Array
    """[N] int64 rank of the time; the sort key where the data has no time."""
    parts: Array
    """[N] uint8 role by the split column; TRAIN where there is none."""
    rows: Array
    """[N] int64 row of the file, for messages."""
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    table: Table | None = None
    """Where the rows came from; None for generated data."""
    feedback: Mapping[str, Array] = field(default_factory=dict)
    """Column -> [N] float32, NaN where there is no value."""

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Array) -> Events:
        """Some interactions, in the order of `rows` (indices or a mask)."""
        names = ("users", "items", "order", "times", "parts", "rows")
        feedback = {name: values[rows] for name, values in self.feedback.items()}
        return replace(self, feedback=feedback, **{name: getattr(self, name)[rows] for name in names})

    def place(self, row: int) -> str:
        """File and line of an interaction."""
        return self.table.place(int(self.rows[row])) if self.table else f"generated row {int(self.rows[row]) + 1}"


def read_items(source: str, columns: ColumnsConfig) -> ItemTable:
    """Read the item table.

    Raises:
        DataError: for a missing column, an item without id, or an id that occurs twice.
    """
    table = read_table(source, "data.items")
    ids = _ids(table, columns.item, "data.columns.item")
    _refuse_repeats(table, ids, columns.item)
    titles = _texts(table, columns.title, "data.columns.title")
    categories = _texts(table, columns.category, "data.columns.category")
    further = [_texts(table, name, f"data.columns.text[{number}]") for number, name in enumerate(columns.text)]
    parts = zip(titles, categories, *further, strict=True)
    texts = [" ".join(dict.fromkeys(part for part in row if part)) for row in parts]
    attributes = {
        name: _texts(table, name, f"data.columns.attributes[{number}]")
        for number, name in enumerate(columns.attributes)
    }
    return ItemTable(ids, titles, [name or None for name in categories], texts, attributes)


def read_events(source: str, columns: ColumnsConfig) -> Events:
    """Read the interactions.

    Raises:
        DataError: for a missing column, or a row without user, item, time or part, or with one that cannot be used.
    """
    table = read_table(source, "data.interactions")
    users, user_ids = _codes(_ids(table, columns.user, "data.columns.user"))
    items, item_ids = _codes(_ids(table, columns.item, "data.columns.item"))
    rows = np.arange(len(table))
    times = _ranks(table, columns.time, "data.columns.time") if columns.time else None
    order = _ranks(table, columns.position, "data.columns.position") if columns.position else times
    order = rows if order is None else order
    parts = np.full(len(table), Role.TRAIN, dtype=np.uint8)
    if columns.split:
        parts = _parts(table, columns.split)
    times = order if times is None else times
    feedback = {
        name: _amounts(table, name, f"data.columns.feedback[{number}]") for number, name in enumerate(columns.feedback)
    }
    return Events(users, items, order, times, parts, rows, user_ids, item_ids, table, feedback)


def item_rows(events: Events, catalog_ids: Sequence[str], source: str) -> Array:
    """Row in the item table of each interaction's item: [N] int64.

    Raises:
        DataError: at the first interaction whose item is not in the table.
    """
    index = {item_id: row for row, item_id in enumerate(catalog_ids)}
    rows = np.array([index.get(item_id, -1) for item_id in events.item_ids], dtype=np.int64)[events.items]
    if (rows < 0).any():
        row = int((rows < 0).argmax())
        item_id = events.item_ids[int(events.items[row])]
        raise DataError(
            f"{events.place(row)}: item {item_id!r} is not in {source} ({len(catalog_ids):,} items; "
            f"{int((rows < 0).sum()):,} such rows).{suggest(item_id, catalog_ids)} "
            f"Add the item to data.items, drop the rows, or leave data.items out."
        )
    return rows


def sorted_ids(ids: Sequence[str]) -> list[str]:
    """Sort ids as numbers if all of them are whole numbers, else as text.

    Example:
        >>> sorted_ids(["10", "9"]), sorted_ids(["b10", "b9"])
        (['9', '10'], ['b10', 'b9'])
    """
    whole = all(name.isascii() and name.isdigit() for name in ids)
    return sorted(ids, key=lambda name: (int(name), name)) if whole else sorted(ids)


def _ids(table: Table, name: str, option: str) -> list[str]:
    """A column of ids as text; whole numbers stay whole (12, not 12.0)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name, option)
    _refuse_nulls(table, column, name)
    if pa.types.is_floating(column.type):
        broken = pc.not_equal(column, pc.floor(column)).to_numpy()
        if broken.any():
            row = int(broken.argmax())
            raise DataError(f"{table.place(row)}: {name} is {column[row]}, not an id. Use text or whole numbers.")
        column = column.cast(pa.int64())
    if not _is_scalar(column.type):
        raise DataError(f"{table.source}: column {name!r} holds {column.type}, not ids. Use text or whole numbers.")
    ids = column.cast(pa.string()).to_pylist()
    if "" in ids:
        raise DataError(f"{table.place(ids.index(''))}: {name} is empty. Fill it in or drop the row.")
    return ids


def _texts(table: Table, name: str | None, option: str) -> list[str]:
    """A column of words, "" where null; all "" without a column."""
    import pyarrow as pa

    if not name:
        return [""] * len(table)
    column = table.column(name, option)
    if not _is_scalar(column.type):
        raise DataError(
            f"{table.source}: column {name!r} ({option}) holds {column.type}, not text. Name a text column."
        )
    return [" ".join(value.split()) if value else "" for value in column.cast(pa.string()).to_pylist()]


def _codes(ids: list[str]) -> tuple[Array, list[str]]:
    """Number ids in sorted order, so that the order of the file's rows does not matter."""
    names = sorted_ids(list(set(ids)))
    index = {name: number for number, name in enumerate(names)}
    return np.fromiter((index[name] for name in ids), dtype=np.int64, count=len(ids)), names


def _ranks(table: Table, name: str, option: str) -> Array:
    """Dense rank of a column of numbers, dates or times: [N] int64."""
    import pyarrow as pa

    column = table.column(name, option)
    _refuse_nulls(table, column, name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parse_times(table, column, name)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{table.source}: column {name!r} ({option}) holds {column.type}. Use numbers, dates or times.")
    values = column.to_numpy()
    if np.isnan(values).any():
        row = int(np.isnan(values).argmax())
        raise DataError(f"{table.place(row)}: {name} is not a number. Fill it in or drop the row.")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _amounts(table: Table, name: str, option: str) -> Array:
    """A column of numbers or truth values, NaN where there is none: [N] float32."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name, option)
    for form in (pa.bool_(), pa.float64()) if column.type != pa.bool_() else (pa.float64(),):
        if _casts(column, form):
            return pc.fill_null(column.cast(form).cast(pa.float32()), float("nan")).to_numpy()
    raise DataError(f"{table.source}: column {name!r} ({option}) holds {column.type}, not numbers.")


def _parse_times(table: Table, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Text to numbers, or to ISO 8601 dates or times, whichever the first row is."""
    import pyarrow as pa

    forms = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
    fitting = [form for form in forms if _casts(column[:1], form)]
    for form in fitting:
        if _casts(column, form):
            return column.cast(form)
    bad = next(
        (row for row in range(len(column)) if not any(_casts(column[row : row + 1], form) for form in fitting)), 0
    )
    raise DataError(
        f"{table.place(bad)}: {name} is {column[bad].as_py()!r}, which is neither a number nor a date or time "
        f"(ISO 8601, as 2014-07-23 or 2014-07-23T10:00:00), or not of the same kind as the first row. "
        f"Mend the row, or name another column in data.columns.time."
    )


def _casts(column: pa.ChunkedArray, form: pa.DataType) -> bool:
    import pyarrow as pa

    try:
        column.cast(form)
    except pa.ArrowInvalid:
        return False
    return True


def _parts(table: Table, name: str) -> Array:
    """Roles by the words of the split column: [N] uint8."""
    column = table.column(name, "data.columns.split")
    _refuse_nulls(table, column, name)
    words = column.to_pylist()
    known = {word: SPLIT_NAMES.get(word) for word in set(words)}
    unknown = [word for word, role in known.items() if role is None]
    if unknown:
        row = min(words.index(word) for word in unknown)
        raise DataError(
            f"{table.place(row)}: {name} is {words[row]!r}.{suggest(str(words[row]), SPLIT_NAMES)} "
            f"Allowed: {', '.join(SPLIT_NAMES)}."
        )
    return np.fromiter((known[word] for word in words), dtype=np.uint8, count=len(words))


def _refuse_nulls(table: Table, column: pa.ChunkedArray, name: str) -> None:
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise DataError(
            f"{table.place(row)}: {name} is empty ({column.null_count:,} such rows). Fill it in or drop the row."
        )


def _refuse_repeats(table: Table, ids: list[str], name: str) -> None:
    seen: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        if item_id in seen:
            raise DataError(
                f"{table.place(row)}: {name} {item_id!r} is there already ({table.place(seen[item_id])}). "
                f"Keep one row per item."
            )
        seen[item_id] = row


def _is_scalar(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind))


def require_option(value: str | None, option: str, reason: str) -> str:
    """Return an option that others need.

    Raises:
        ConfigError: if it is not set.
    """
    if not value:
        raise ConfigError(f"{option} is not set, but {reason} needs it. Set {option}.")
    return value
