"""Text from data and paths made safe for a terminal: all of it is seen, and none of it moves, hides or forges lines."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are shown as escapes: control, format, half of a pair, and separators of lines."""


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
