"""What users give, opened here alone: files that have an end, JSON that no reader breaks on, names that disks take."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrl.errors import DataError, GenRLError, cut

LONGEST = 200
"""Bytes of a name at most: file systems take 255, and genrl puts a few before and behind."""
Pairs = Callable[[list[tuple[str, Any]]], Any]
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def kind_of(path: str | Path, of: str) -> str:
    """What lies at a path: "file", "a folder", "a pipe", "a device", "a socket" or "" for nothing.

    Args:
        path: as the user gives it; `~` is a home.
        of: what named it, for messages.

    Raises:
        DataError: if it can be no path, or nobody may look.
    """
    try:
        mode = Path(path).expanduser().stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{cut(str(path))}: cannot be read ({reason(error)}), given by {of}. Check the path."
        ) from error
    return "file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a socket")


def regular(path: str | Path, of: str) -> Path:
    """The path of a file that has an end, `~` made a home.

    Raises:
        DataError: if it is none, is not there or may not be read.
    """
    file, kind = Path(path), kind_of(path, of)
    if not kind:
        raise DataError(f"{file}: no such file, given by {of}. Check the path; it is relative to {Path.cwd()}.")
    if kind != "file":
        raise DataError(f"{file}: is {kind}, not a file, given by {of}. Give a regular file.")
    file = file.expanduser()
    if not os.access(file, os.R_OK):
        raise DataError(f"{file}: may not be read (permission denied), given by {of}. Change its mode, or copy it.")
    return file


def read_text(path: str | Path, of: str) -> str:
    """A regular file of UTF-8 text.

    Raises:
        DataError: as `regular`, or if it is another encoding.
    """
    file = regular(path, of)
    with _utf8(file, of):
        return file.read_text(encoding="utf-8-sig")


def lines_of(path: str | Path, of: str) -> Iterator[tuple[str, str]]:
    """Place (`FILE:NUMBER`) and text of each line that is not blank, read one by one; errors as `read_text`."""
    file = regular(path, of)
    with _utf8(file, of), file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{file}:{number}", line


def parsed(text: str | bytes, pairs: Pairs | None = None) -> Any:  # noqa: ANN401 (any JSON value)
    """What JSON says, one text or one line of it.

    Args:
        text: of it.
        pairs: makes something of the names and values of each object; None: a dict.

    Raises:
        ValueError: with the reason in a few words, whatever it is.

    Example:
        >>> parsed("[" * 100_000)
        Traceback (most recent call last):
        ValueError: JSON that nests too deep
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except GenRLError:
        raise
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " * (error.lineno > 1)
        raise ValueError(f"not JSON ({error.msg}, {where}column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise ValueError("JSON that nests too deep") from error
    except ValueError as error:
        raise ValueError("JSON with an integer of more than 4,300 digits") from error


def json_of(path: str | Path, of: str, pairs: Pairs | None = None) -> Any:  # noqa: ANN401
    """What a regular file of JSON says; arguments and errors as `read_text` and `parsed`, the latter as a DataError."""
    text = read_text(path, of)
    try:
        return parsed(text, pairs)
    except GenRLError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {error}, given by {of}. Get the file again, or mend it.") from error


def wrong_name(name: str) -> str:
    """What is wrong with the name of a file or a folder, in words; "" if a disk takes it.

    Example:
        >>> wrong_name("sapo"), wrong_name("a/b"), wrong_name("x" * 300)
        ('', "holds '/'", 'has 300 bytes, and names may have 200')
    """
    found = next((sign for sign in name if sign == "/" or not sign.isprintable()), "")
    if not name.strip() or name in (".", ".."):
        return "names no folder of its own"
    if found:
        return f"holds {found!r}"
    size = len(name.encode())
    return f"has {size:,} bytes, and names may have {LONGEST}" if size > LONGEST else ""


def reason(error: BaseException) -> str:
    """Why a file cannot be used, without its name."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _utf8(file: Path, of: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error.reason}), given by {of}. Save it as UTF-8.") from error
