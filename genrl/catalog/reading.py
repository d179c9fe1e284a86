"""Reads the columns that are asked for, and remembers where each row came from, so that errors can say it."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from genrl.errors import ConfigError, DataError, suggest
from genrl.given import kind_of, parsed, reason, regular

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t", ".dat": "::"}
FORMS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"} | {
    name: name[1:] for name in (".inter", ".item", ".dat")
}
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a file -> how it is compressed, whatever its name."""
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
"""What may follow the name of a column behind a colon."""
LONGEST_FIELD = 2**31 - 1
"""Bytes of a quoted field at most; Python's own bound is 131,072, fewer than a long description has."""
CHUNK = 65_536
"""Rows of a text file that are held as Python objects at a time."""


@dataclass(frozen=True, eq=False)
class Table:
    """The columns that were asked for, of one or several files of one form."""

    source: str
    """What the user named: a file, a folder or a hub data set."""
    columns: Mapping[str, Sequence[pa.Array | list[Any]]]
    """Name -> pieces in the order of the rows, as the files have them; a list where a JSONL file mixes types."""
    files: Sequence[tuple[Callable[[int], str], int]]
    """(place of a row counted from 0, number of rows) of each file."""

    def __len__(self) -> int:
        return sum(rows for _, rows in self.files)

    def place(self, row: int) -> str:
        """File and line of a row, counted as a person would: from 1, the header of a CSV file included."""
        for place, rows in self.files:
            if row < rows:
                return place(row)
            row -= rows
        raise IndexError(row)


def read_table(
    source: str,
    option: str,
    wanted: Mapping[str, str],
    separator: str | None = None,
    encoding: str = "utf-8",
    header: Sequence[str] = (),
) -> Table:
    """Read some columns of a parquet, delimited or JSONL file, of a folder of such files, or of a hub data set.

    Nothing is written beside the user's files, and columns that are not asked for may hold anything.

    Args:
        source: path, or name of a hub data set (its `train` split is read).
        option: configuration key that named it, for messages.
        wanted: column -> configuration key that named it.
        separator: between the fields of a delimited file; None: by suffix.
        encoding: of delimited and JSONL files.
        header: all columns of delimited files without a header line.

    Raises:
        DataError: if there is nothing to read, a column is missing, or a file cannot be parsed (with the line).
        ConfigError: for a separator, an encoding or a header that cannot be.
    """
    import pyarrow as pa

    kind = kind_of(source, option)
    if not kind:
        return _read_hub(source, option, wanted, header)
    path = Path(source).expanduser() if kind == "a folder" else regular(source, option)
    columns: dict[str, list[pa.Array | list[Any]]] = {name: [] for name in wanted}
    files = []
    for file in _files(path, option, separator, encoding, header):
        rows = 0
        try:
            for size, pieces in file.pieces(wanted):
                rows += size
                for name, piece in pieces.items():
                    columns[name].extend(piece)
        except (OSError, UnicodeError, pa.ArrowException) as error:
            remedy = "Set data.encoding" if isinstance(error, UnicodeError) else "Mend the file"
            raise DataError(
                f"{file.path}: cannot be read as {file.form}: {_reason(error)} {remedy}, or convert it to parquet."
            ) from error
        files.append((file.place, rows))
    if not any(rows for _, rows in files):
        raise DataError(f"{path}: no rows. Give a file with at least one row.")
    return Table(source, columns, files)


def bare(path: Path) -> Path:
    """The path without the ending of a compressed file.

    Example:
        >>> bare(Path("log.csv.gz")).name, bare(Path("log.csv")).name
        ('log.csv', 'log.csv')
    """
    return path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path


def _files(path: Path, option: str, separator: str | None, encoding: str, header: Sequence[str]) -> list[_File]:
    """The files to read: the path itself, or those of a folder, which must be of one form."""
    try:
        listed = [path] if path.is_file() else sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be read ({reason(error)}), given by {option}.") from error
    suffixes = {file: bare(file).suffix.lower() for file in listed}
    if path.is_file() and suffixes[path] not in FORMS and not separator:
        raise DataError(
            f"{path}: unknown form {suffixes[path] or '(no suffix)'!r} ({option}). Known: {', '.join(FORMS)}, also as "
            f".gz or .zst. Convert the file, rename it to what it is, or set data.separator if it is delimited."
        )
    if not path.is_file():
        suffixes = {
            file: suffix
            for file, suffix in suffixes.items()
            if suffix in FORMS and file.is_file() and not file.name.startswith(".")
        }
    forms = {file: FORMS.get(suffix, "delimited") for file, suffix in suffixes.items()}
    if not forms:
        raise DataError(f"{path}: no file of a known form in this folder ({option}). Known: {', '.join(FORMS)}.")
    if len(set(forms.values())) > 1:
        raise DataError(
            f"{path}: files of several forms ({', '.join(sorted(set(forms.values())))}) in one folder ({option}). "
            f"Name one file, or a folder that holds one form."
        )
    if {"parquet", "json"} & set(forms.values()):
        _refuse_header(header, option, str(path))
    separator = separator.replace("\\t", "\t") if separator else separator
    if separator is not None and (not separator or set(separator) & set('"\r\n')):
        raise ConfigError(
            f"data.separator is {separator!r}. Give what stands between fields, such as ; or \\t; in a file, quote it "
            f"where YAML would read it as something else: separator: '|'."
        )
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), encoding=name)
    except LookupError as error:
        raise ConfigError(
            f"data.encoding is {encoding!r}: {error}. Known are utf-8, latin-1, cp1252, gb18030, utf-16 and others."
        ) from error
    name = "utf-8-sig" if name == "utf-8" else name  # a byte order mark is no part of the first column
    return [
        _File(file, form, separator or SEPARATORS.get(suffixes[file], ","), name, encoding, option, tuple(header))
        for file, form in forms.items()
    ]


@dataclass(frozen=True)
class _File:
    """One file of the user's."""

    path: Path
    form: str
    separator: str
    codec: str
    encoding: str
    """As the user named it."""
    option: str
    """What named the file."""
    header: tuple[str, ...]
    """Columns of a file without a header line; empty: the first line names them."""

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Sequence[pa.Array | list[Any]]]]]:
        """Number of rows, and the pieces of each column, one part of the file after another."""
        if self.form == "parquet":
            import pyarrow.parquet as pq

            with self._open() as stream:
                table = pq.ParquetFile(stream)
                _find(table.schema_arrow.names, wanted, str(self.path))
                yield _pieces(table.read(columns=list(wanted)), wanted)
            return
        if self.form != "json" and (plain := self._plain(wanted)) is not None:
            yield _pieces(plain, wanted)
            return
        rows = self._objects(wanted) if self.form == "json" else self._fields(wanted)
        start = 0
        while True:
            columns: dict[str, list[Any]] = {name: [] for name in wanted}
            appends = [column.append for column in columns.values()]
            # No list of rows is kept: the garbage collector would visit each of them, again and again.
            for values in islice(rows, CHUNK):
                for append, value in zip(appends, values, strict=True):
                    append(value)
            count = len(next(iter(columns.values())))
            if not count:
                return
            yield count, {name: [self._array(values, name, start)] for name, values in columns.items()}
            start += count

    def place(self, row: int) -> str:
        """Where a row is, counted from 0 without a header."""
        if self.form == "parquet":
            return f"{self.path}, row {row + 1}"
        records = self._read_json() if self.form == "json" else islice(self._read_delimited(), not self.header, None)
        return f"{self.path}:{next(islice(records, row, None))[0]}"

    def _objects(self, wanted: Mapping[str, str]) -> Iterator[list[Any]]:
        missing = set(wanted)
        empty = True
        for _, value in self._read_json():
            if missing:
                missing -= value.keys()
            empty = False
            yield [value.get(name) for name in wanted]
        if missing and not empty:
            _find(list(dict.fromkeys(name for _, value in self._read_json() for name in value)), wanted, str(self.path))

    def _fields(self, wanted: Mapping[str, str]) -> Iterator[list[str]]:
        _, _, places = self._header(wanted)
        for _, fields in islice(self._read_delimited(), not self.header, None):
            yield [fields[place] for place in places]

    def _header(self, wanted: Mapping[str, str]) -> tuple[int, int, list[int]]:
        """Line of the header (0: there is none), its width, and where the wanted columns are in it."""
        if self.header:
            return 0, len(self.header), _find(self.header, wanted, f"{self.path} ({self.option}_header)")
        line, header = next(self._read_delimited(), (0, None))
        if header is None:
            raise DataError(f"{self.path}: empty file. The first line of a {self.form} file names its columns.")
        hint = (
            f" The file is split at {self.separator!r} (data.separator) and read as {self.encoding} (data.encoding). "
            f"If its first line is no header, name all columns: {self.option}_header=[user_id,item_id,...]."
        )
        names = []
        for name in header:
            head, _, kind = name.rpartition(":")
            names.append(head if kind in RECBOLE_TYPES and name not in wanted and head not in header else name)
        return line, len(header), _find(names, wanted, str(self.path), hint)

    def _plain(self, wanted: Mapping[str, str]) -> pa.Table | None:
        """The columns by Arrow's fast reader; None where a quote, a blank row or a misfit needs ours."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

        if len(self.separator) > 1 or self.codec != "utf-8-sig":
            return None
        with self._open() as stream:
            if any(b'"' in part for part in iter(partial(stream.read, 1 << 24), b"")):
                return None
        line, width, places = self._header(wanted)
        names = [str(place) for place in range(width)]
        try:
            with self._open() as stream:
                data = read_csv(
                    stream,
                    ReadOptions(column_names=names, skip_rows=line),
                    ParseOptions(delimiter=self.separator, quote_char=False),
                    ConvertOptions(
                        column_types=dict.fromkeys(names, pa.string()),
                        include_columns=[names[place] for place in places],
                    ),
                )
        except (pa.ArrowInvalid, UnicodeError):
            return None
        blank = reduce(pc.and_, [pc.equal(column, "") for column in data.columns])
        return None if pc.any(blank).as_py() else data.rename_columns(list(wanted))

    def _read_json(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line and object, blank lines left out."""
        problem = ""
        with self._text() as stream:
            for line, text in enumerate(stream, start=1):
                if text.isspace():
                    continue
                try:
                    value = parsed(text)
                    if isinstance(value, dict):
                        yield line, value
                        continue
                    problem = f"{'null' if value is None else f'a {type(value).__name__}'}, not an object."
                except ValueError as error:
                    problem = f"{error}."
                raise DataError(
                    f"{self.path}:{line}: {problem} A JSONL file holds one object per line; mend or drop the line."
                )

    def _read_delimited(self) -> Iterator[tuple[int, list[str]]]:
        """Line and fields, the header first; lines without any value left out."""
        width = len(self.header)
        with self._text() as stream:
            for line, fields in self._quoted(stream) if self._quotes else self._split(stream):
                if not any(fields) or (len(fields) == 1 and fields[0].isspace()):
                    continue
                width = width or len(fields)
                if len(fields) != width:
                    names = f"{self.option}_header" if self.header else "the first line"
                    raise DataError(
                        f"{self.path}:{line}: {len(fields)} fields between {self.separator!r}, but {names} has "
                        f"{width}. Mend the row{' (quote a field that holds the separator)' * self._quotes}, "
                        f"name all columns in {names}, or set data.separator."
                    )
                yield line, fields

    @property
    def _quotes(self) -> bool:
        """Whether a quoted field may hold separators and line ends; elsewhere a quote can be part of the text."""
        return len(self.separator) == 1 and self.separator != "\t"

    def _quoted(self, stream: TextIO) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(stream, delimiter=self.separator, strict=True)
        csv.field_size_limit(LONGEST_FIELD)
        start = 1
        try:
            for fields in reader:
                yield start, fields
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{self.path}:{start}: {error}. A field that begins with a quote ends with one; "
                f'write a quote inside it twice: "5"" pan". Mend the row.'
            ) from error

    def _split(self, stream: TextIO) -> Iterator[tuple[int, list[str]]]:
        for line, text in enumerate(stream, start=1):
            fields = text.rstrip("\r\n").split(self.separator)
            yield line, [_unquoted(field) for field in fields] if '"' in text else fields

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        """The text of the file; what is not in its encoding is let through as lone surrogates, see `_array`."""
        with self._open() as stream:
            newline = "" if self.form != "json" and self._quotes else None
            yield io.TextIOWrapper(stream, encoding=self.codec, errors="surrogateescape", newline=newline)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The bytes of the file, unpacked."""
        import pyarrow as pa

        with self.path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            if head == b"PK\x03\x04":
                raise DataError(f"{self.path}: a zip archive. Unpack it, or pack it with gzip or zstd.")
            packing = next((packing for magic, packing in COMPRESSED.items() if head.startswith(magic)), None)
            if packing is None:
                yield stream
            else:
                unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), packing)
                yield pa.BufferReader(unpacked.read()) if self.form == "parquet" else unpacked

    def _array(self, values: list[Any], name: str, start: int) -> pa.Array | list[Any]:
        """One type where all values have one, else the list.

        Raises:
            DataError: at the first text that is not in the encoding of the file.
        """
        import pyarrow as pa

        kinds = set(map(type, values)) - {type(None)}
        form = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        try:
            if len(kinds) < 2 and kinds <= form.keys():
                return pa.array(values, form[next(iter(kinds), str)])
            "".join(value for value in values if isinstance(value, str)).encode()
        except OverflowError:
            return values
        except UnicodeEncodeError as error:
            row = next(row for row, value in enumerate(values) if isinstance(value, str) and _shown(value) != value)
            raise DataError(
                f"{self.place(start + row)}: {name} is {_shown(values[row])[:80]!r}, which is not {self.encoding}. Set "
                f"data.encoding to that of the file (latin-1, cp1252, gb18030, utf-16 ...), or mend the row."
            ) from error
        return values


def _unquoted(field: str) -> str:
    """Take off the quotes of a field that is quoted as a whole, as pandas writes it; other quotes are text."""
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")
    return field[1:-1].replace('""', '"') if whole else field


def _shown(text: str) -> str:
    """The text with an escape for each lone surrogate, so that it can be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def _pieces(data: pa.Table, names: Mapping[str, str]) -> tuple[int, dict[str, Sequence[pa.Array | list[Any]]]]:
    import pyarrow as pa

    def plain(piece: pa.Array) -> pa.Array:
        return piece.dictionary_decode() if pa.types.is_dictionary(piece.type) else piece

    return data.num_rows, {name: [plain(piece) for piece in data.column(name).chunks] for name in names}


def _find(have: Sequence[str], wanted: Mapping[str, str], place: str, hint: str = "") -> list[int]:
    """Index of each wanted column.

    Raises:
        DataError: if one is not there, or there twice.
    """
    for name, option in wanted.items():
        if name not in have:
            absent = ", or to null if there is none" * option.endswith((".time", ".title", ".category"))
            raise DataError(
                f"{place}: no column {name!r} (asked for by {option}).{suggest(name, have)} "
                f"Columns there: {', '.join(map(_shown, have))}. Set {option} to one of them{absent}.{hint}"
            )
        if have.count(name) > 1:
            raise DataError(f"{place}: column {name!r} is named twice. Give each column its own name.")
    return [have.index(name) for name in wanted]


def _refuse_header(header: Sequence[str], option: str, source: str) -> None:
    if header:
        raise ConfigError(f"{option}_header is {list(header)}, but {source} names its columns itself. Set it to [].")


def _read_hub(source: str, option: str, wanted: Mapping[str, str], header: Sequence[str]) -> Table:
    if bare(Path(source)).suffix.lower() in FORMS or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: no such file or folder ({option}). Check the path; it is relative to {Path.cwd()}.")
    with _quiet() as datasets:
        try:
            loaded = datasets.load_dataset(source, split="train", keep_in_memory=True)
        except Exception as error:  # every reader raises its own family; the message below replaces them all
            raise DataError(
                f"{source}: neither a file, nor a folder, nor a hub data set that can be loaded ({option}): "
                f"{_reason(error)} Check the path, or the name and the network."
            ) from error
    _refuse_header(header, option, source)
    _find(loaded.column_names, wanted, source)
    rows, pieces = _pieces(loaded.with_format("arrow")[:], wanted)
    return Table(source, pieces, [(lambda row: f"{source}, row {row + 1}", rows)])


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


def _reason(error: BaseException) -> str:
    """First line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(".") + "."
