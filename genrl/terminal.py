"""Text from data and paths made safe for a terminal: all of it is seen, and none of it moves, hides or forges lines."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are shown as escapes: control, format, half of a pair, and separators of lines."""


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, nothing that is written to stdout ends the program.

    What its encoding lacks is written as escapes, and once its reader is gone (`| head`) the rest goes nowhere: a run
    that trains goes on.
    """
    before = sys.stdout
    try:
        number = before.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or an object of a program that calls us
        yield
        return
    before.flush()
    stream = io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number)),
        encoding=before.encoding,
        errors="backslashreplace",
        line_buffering=before.isatty(),
    )
    sys.stdout = stream
    try:
        yield
    finally:
        sys.stdout = before
        stream.flush()
        stream.detach().detach()  # the file stays open


class _Lasting(io.RawIOBase):
    """A file by its number, in which nobody need read."""

    def __init__(self, number: int) -> None:
        self.number, self.read_by_nobody = number, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001 (any buffer)
        if not self.read_by_nobody:
            try:
                return os.write(self.number, data)
            except BrokenPipeError:
                self.read_by_nobody = True
        return len(data)


def safe(text: object) -> str:
    r"""One line of text in which control and format characters stand as escapes.

    Example:
        >>> print(safe("lamp\n   1  99.0\x1b[2K\u202e"))
        lamp\n   1  99.0\x1b[2K\u202e
    """
    return "".join(_escaped(sign) if unicodedata.category(sign) in UNSEEN else sign for sign in str(text))


def paragraphs(text: object) -> str:
    r"""Text of several lines, each of them safe; all but the first are indented, so that none can pose as another.

    Example:
        >>> print(paragraphs("2 problems:\n  a\ngenrl: done\a"))
        2 problems:
          a
          genrl: done\x07
    """
    first, *others = str(text).split("\n")
    return "\n".join([safe(first), *(safe(line if line.startswith("  ") else f"  {line}") for line in others)])


def verbatim(text: object, style: str = "") -> Text:
    """Safe text for rich, which reads no markup and no names of emoji in it."""
    from rich.text import Text

    return Text(safe(text), style)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
