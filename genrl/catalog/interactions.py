"""From the user's tables to clean columns: ids as text, times as ranks, bad rows named by file and line."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from genrl.catalog.reading import Table, read_table
from genrl.catalog.sequences import DAY, Role
from genrl.config.schema import ColumnsConfig, DataConfig
from genrl.errors import DataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray

NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3600 * 10**9,
    "days": DAY,
}
"""Unit of a column of times -> nanoseconds."""
LONGEST_SPAN = 200
"""Years between the first and the last interaction, beyond which a unit must be the wrong one."""
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
        names = ("item_ids", "titles", "categories", "texts")
        columns: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in names}
        attributes = {name: [values[row] for row in rows] for name, values in self.attributes.items()}
        return ItemTable(attributes=attributes, **columns)


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
    clock: Array | None = None
    """[N] int64 nanoseconds from the first interaction; None: the unit of times is not said (`data.time_unit`)."""

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Array) -> Events:
        """Some interactions, in the order of `rows` (indices or a mask)."""
        names = ("users", "items", "order", "times", "parts", "rows")
        feedback = {name: values[rows] for name, values in self.feedback.items()}
        clock = None if self.clock is None else self.clock[rows]
        return replace(self, feedback=feedback, clock=clock, **{name: getattr(self, name)[rows] for name in names})

    def place(self, row: int) -> str:
        """File and line of an interaction."""
        return self.table.place(int(self.rows[row])) if self.table else f"generated row {int(self.rows[row]) + 1}"


def read_items(source: str, config: DataConfig) -> ItemTable:
    """Read the item table.

    Raises:
        DataError: for a missing column, an item without id, or an id that occurs twice.
    """
    columns = config.columns
    wanted = _options(columns, ("item", "title", "category", "text", "attributes"))
    table = read_table(source, "data.items", wanted, config.separator, config.encoding, config.items_header)
    ids = _ids(table, columns.item).to_pylist()
    _refuse_repeats(table, ids, columns.item)
    titles, categories = _words(table, columns.title), _words(table, columns.category)
    parts = zip(titles, categories, *(_words(table, name) for name in columns.text), strict=True)
    texts = [" ".join(dict.fromkeys(part for part in row if part)) for row in parts]
    attributes = {name: _words(table, name) for name in columns.attributes}
    return ItemTable(ids, titles, [name or None for name in categories], texts, attributes)


def read_events(source: str, config: DataConfig) -> Events:
    """Read the interactions.

    Raises:
        DataError: for a missing column, or a row without user, item, time or part, or with one that cannot be used.
    """
    columns = config.columns
    wanted = _options(columns, ("user", "item", "time", "position", "split", "feedback"))
    header = config.interactions_header
    table = read_table(source, "data.interactions", wanted, config.separator, config.encoding, header)
    users, user_ids = _codes(_ids(table, columns.user))
    items, item_ids = _codes(_ids(table, columns.item))
    rows = np.arange(len(table))
    told = _sortable(table, columns.time, "data.columns.time") if columns.time else None
    times = None if told is None else _ranks(told[0])
    order = _ranks(_sortable(table, columns.position, "data.columns.position")[0]) if columns.position else times
    order = rows if order is None else order
    parts = _parts(table, columns.split) if columns.split else np.full(len(table), Role.TRAIN, dtype=np.uint8)
    feedback = {name: _amounts(table, name) for name in columns.feedback}
    clock = None
    if config.time_unit is not None:
        assert told is not None  # a unit of no column is refused with the configuration
        clock = _nanoseconds(table, str(columns.time), *told, config.time_unit)
    times = order if times is None else times
    return Events(users, items, order, times, parts, rows, user_ids, item_ids, table, feedback, clock)


def read_profiles(source: str, fields: Sequence[str], config: DataConfig) -> dict[str, dict[str, str]]:
    """Read what is known of users: user id -> the columns `fields` that are not empty, as text.

    Raises:
        DataError: for a missing column, a row without user, or a user that occurs twice.
    """
    user = config.columns.user
    wanted = {user: "data.columns.user"} | {name: f"prompt.fields[{at}]" for at, name in enumerate(fields)}
    table = read_table(source, "prompt.profile", wanted, config.separator, config.encoding)
    ids = _ids(table, user).to_pylist()
    _refuse_repeats(table, ids, user)
    columns = [_words(table, name) for name in fields]
    rows = zip(*columns, strict=True) if columns else [()] * len(ids)
    return {
        name: {field: value for field, value in zip(fields, row, strict=True) if value}
        for name, row in zip(ids, rows, strict=True)
    }


def _options(columns: ColumnsConfig, names: Sequence[str]) -> dict[str, str]:
    """Columns of the files that are named under `names` -> the option that names them."""
    options: dict[str, str] = {}
    for name in names:
        value = getattr(columns, name)
        listed = [(one, f"data.columns.{name}[{number}]") for number, one in enumerate(value or ())]
        for column, option in listed if isinstance(value, list) else [(value, f"data.columns.{name}")]:
            if column:
                options.setdefault(column, option)
    return options


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
    if not whole:
        return sorted(ids)
    digits = {name: name.lstrip("0") for name in ids}  # more of them than Python makes a number of may be there
    return sorted(ids, key=lambda name: (len(digits[name]), digits[name], name))


def _ids(table: Table, name: str) -> pa.ChunkedArray:
    """A column of ids as text; whole numbers stay whole (12, not 12.0)."""
    column = _text(table, name, exact=True)
    _refuse_nulls(table, column, name)
    return column


def _words(table: Table, name: str | None) -> list[str]:
    """A column of words, "" where null; all "" without a column."""
    if not name:
        return [""] * len(table)
    return [" ".join(value.split()) if value else "" for value in _text(table, name).to_pylist()]


def _text(table: Table, name: str, exact: bool = False) -> pa.ChunkedArray:
    """A column of any plain type as text, null where it is empty.

    With `exact`, what is no id is refused: broken, infinite or missing numbers, and floats that may have lost digits.
    """
    import pyarrow as pa

    pieces, start = [], 0
    for piece in table.columns[name]:
        if isinstance(piece, list) or pa.types.is_floating(piece.type):
            digits = 53 if isinstance(piece, list) else {16: 11, 32: 24, 64: 53}[piece.type.bit_width]
            values = piece if isinstance(piece, list) else piece.to_pylist()
            words = []
            for row, value in enumerate(values, start):
                try:
                    words.append(_word(value, digits, exact))
                except ValueError as error:
                    raise DataError(f"{table.place(row)}: {name} is {error}") from None
            pieces.append(pa.array(words, pa.string()))
        elif pa.types.is_nested(piece.type) or pa.types.is_binary(piece.type):
            needed = "ids. Use text or whole numbers" if exact else "text. Name a text column"
            raise DataError(f"{table.place(start)}: column {name!r} holds {piece.type}, not {needed}.")
        else:
            pieces.append(piece.cast(pa.string()))
        start += len(piece)
    return _without_blanks(pa.chunked_array(pieces, pa.string()))


def _word(value: Any, digits: int, exact: bool) -> str | None:  # noqa: ANN401 (whatever there is)
    """One value as text; floats are exact below two to the `digits`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int)):
        return str(value).lower()
    if not isinstance(value, float):
        needed = "an id. Use text or whole numbers" if exact else "text. Name a text column"
        raise ValueError(f"a {type(value).__name__}, not {needed}.")
    if value.is_integer() and abs(value) < 2**digits:
        return str(int(value))
    if exact and value.is_integer():
        raise ValueError(
            f"{value:.17g}, a float above 2^{digits}, where different ids may have become one. "
            f"Write the ids as text or as integers, from the source on."
        )
    if exact:
        raise ValueError(f"{value}, not an id. Use text or whole numbers.")
    return None if math.isnan(value) else str(value)


def _without_blanks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text with null for ""."""
    import pyarrow.compute as pc

    return pc.if_else(pc.equal(column, ""), None, column)


def _codes(ids: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Number ids in sorted order, so that the order of the file's rows does not matter."""
    import pyarrow as pa

    coded = pa.concat_arrays(ids.chunks).dictionary_encode()
    found = coded.dictionary.to_pylist()
    names = sorted_ids(found)
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[name] for name in found], dtype=np.int64)[coded.indices.to_numpy()], names


def _values(table: Table, name: str) -> pa.ChunkedArray:
    """A column as the files have it, "" as null; as text where their types differ."""
    import pyarrow as pa

    pieces = [
        pa.array([None if value is None else str(value) for value in piece], pa.string())
        if isinstance(piece, list)
        else piece
        for piece in table.columns[name]
    ]
    kinds = {piece.type for piece in pieces if piece.null_count < len(piece)} or {pa.string()}
    kind = next(iter(kinds)) if len(kinds) == 1 else pa.string()
    if len(kinds) > 1 and any(map(pa.types.is_nested, kinds)):
        raise DataError(f"{table.source}: column {name!r} holds lists in some files. Use numbers, dates or times.")
    alike = [pa.nulls(len(piece), kind) if piece.null_count == len(piece) else piece.cast(kind) for piece in pieces]
    column = pa.chunked_array(alike, kind)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    return _without_blanks(column) if pa.types.is_string(column.type) else column


def _ranks(values: Array) -> Array:
    """Dense rank of values [N]: [N] int64."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _sortable(table: Table, name: str, option: str) -> tuple[Array, pa.DataType]:
    """A column of numbers, dates or times as numbers [N] that sort, and its type."""
    import pyarrow as pa

    column = _values(table, name)
    _refuse_nulls(table, column, name)
    if pa.types.is_string(column.type):
        forms = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
        allowed = "a number nor a date or time (ISO 8601, as 2014-07-23 or 2014-07-23T10:00:00)"
        column = _parsed(table, column, name, forms, allowed, option)
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{table.source}: column {name!r} ({option}) holds {column.type}. Use numbers, dates or times.")
    values = column.to_numpy()
    if not np.isfinite(values).all():
        row = int(np.isfinite(values).argmin())
        raise DataError(f"{table.place(row)}: {name} is not a number but {values[row]}. Fill it in or drop the row.")
    return values, kind


def _nanoseconds(table: Table, name: str, values: Array, kind: pa.DataType, unit: str) -> Array:
    """Nanoseconds [N] int64 from the earliest of the times [N] in a unit to each.

    Raises:
        DataError: if the unit is not that of the column, or makes more than `LONGEST_SPAN` years of it.
    """
    import pyarrow as pa

    where, numeric = f"{table.source}: column {name!r} (data.columns.time)", ", ".join(NANOSECONDS)
    dated = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if unit == "date" and not dated:
        raise DataError(f"{where} holds {kind}, and data.time_unit=date is for dates. Say its unit: {numeric}.")
    if unit != "date" and pa.types.is_temporal(kind):
        remedy = "Set data.time_unit=date" if dated else "Name a column of dates, or of numbers"
        raise DataError(f"{where} holds {kind}, and data.time_unit={unit} is for numbers. {remedy}.")
    if unit == "date":
        unit = "days" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    size = NANOSECONDS[unit]
    span = (float(values.max()) - float(values.min())) * size
    if span > LONGEST_SPAN * 365 * DAY:
        raise DataError(
            f"{where} spans {span / DAY / 365:,.0f} years if data.time_unit={unit} is its unit. Say the right one: "
            f"{numeric}."
        )
    if np.issubdtype(values.dtype, np.floating):
        return ((values - values.min()).astype(np.float64) * size).round().astype(np.int64)
    whole = values.astype(np.int64)
    return (whole - whole.min()) * size


def _amounts(table: Table, name: str) -> Array:
    """A column of numbers or truth values, NaN where there is none: [N] float32."""
    import pyarrow as pa

    column = _values(table, name)
    if pa.types.is_string(column.type):
        forms = (pa.float64(), pa.bool_())
        column = _parsed(table, column, name, forms, "a number nor true or false", "data.columns.feedback")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise DataError(f"{table.source}: column {name!r} (data.columns.feedback) holds {column.type}. Use numbers.")
    values = column.cast(pa.float64(), safe=False).to_numpy()
    large = np.abs(values) > np.finfo(np.float32).max
    if large.any():
        row = int(large.argmax())
        raise DataError(f"{table.place(row)}: {name} is {column[row]}, too large for feedback. Mend or empty it.")
    return values.astype(np.float32)


def _parsed(
    table: Table, column: pa.ChunkedArray, name: str, forms: Sequence[pa.DataType], allowed: str, option: str
) -> pa.ChunkedArray:
    """Text as the first of the types that fits all rows, nulls kept."""
    import pyarrow as pa

    def fails(rows: int, form: pa.DataType) -> bool:
        try:
            column[:rows].cast(form)
        except pa.ArrowInvalid:
            return True
        return False

    fitting = next((form for form in forms if not fails(len(column), form)), None)
    if fitting is not None:
        return column.cast(fitting)
    bad = max(bisect_left(range(1, len(column)), True, key=partial(fails, form=form)) for form in forms)
    raise DataError(
        f"{table.place(bad)}: {name} is {column[bad].as_py()!r}, which is neither {allowed}, or not of the same kind "
        f"as the first row. Mend the row, or name another column in {option}."
    )


def _parts(table: Table, name: str) -> Array:
    """Roles by the words of the split column: [N] uint8."""
    column = _text(table, name)
    _refuse_nulls(table, column, name)
    words = column.to_pylist()
    known = {word: SPLIT_NAMES.get(word) for word in set(words)}
    unknown = [word for word, role in known.items() if role is None]
    if unknown:
        row = min(words.index(word) for word in unknown)
        raise DataError(
            f"{table.place(row)}: {name} is {words[row]!r}.{suggest(words[row], SPLIT_NAMES)} "
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
