"""Semantic IDs of RecIF-Bench: three codes of 8,192 in text, and one number for them."""

from __future__ import annotations

import re

CODES = 8192
"""Codes of each level."""
LEVELS = "abc"
"""Letters of the levels in their tokens."""
OPEN, CLOSE = "<|sid_begin|>", "<|sid_end|>"
"""Marks around a SID."""
END_OF_THINKING = "</think>"
_SID = re.compile(r"<s_a_(\d+)><s_b_(\d+)><s_c_(\d+)>")


def sid_token(level: int, code: int) -> str:
    """Text of one token.

    Example:
        >>> sid_token(2, 17)
        '<s_c_17>'
    """
    return f"<s_{LEVELS[level]}_{code}>"


def sid_text(number: int) -> str:
    """The text of a SID, marks included.

    Example:
        >>> sid_text(8192**2 + 2 * 8192 + 3)
        '<|sid_begin|><s_a_1><s_b_2><s_c_3><|sid_end|>'
    """
    codes = number // CODES**2, number // CODES % CODES, number % CODES
    return f"{OPEN}{''.join(sid_token(level, code) for level, code in enumerate(codes))}{CLOSE}"


def number_of(codes: tuple[int, ...]) -> int | None:
    """One number of three codes, a * 8192^2 + b * 8192 + c; None if one of them is no code.

    Example:
        >>> number_of((1, 2, 3)), number_of((0, 8192, 0))
        (67125251, None)
    """
    if any(code >= CODES for code in codes):
        return None
    a, b, c = codes
    return (a * CODES + b) * CODES + c


def read_sids(text: str) -> list[int | None]:
    """All SIDs of an answer in their order; None for one with a code that does not exist.

    Example:
        >>> read_sids("<|sid_begin|><s_a_0><s_b_0><s_c_9><|sid_end|><|sid_begin|><s_a_0><s_b_1><s_c_9000><|sid_end|>")
        [9, None]
    """
    return [number_of(tuple(map(int, found))) for found in _SID.findall(text)]


def read_generation(text: str, *, whole: bool) -> int | None:
    r"""The SID that a generation names behind its thinking, if it names one; of several the first.

    Args:
        text: a SID with or without its marks, perhaps behind thinking.
        whole: whether nothing but the SID may stand between its marks. The evaluator compares texts in its mode `sid`,
            so that a SID with something behind it is none, and looks for the first SID in its mode `pid`.

    Example:
        >>> text = "so I say</think>\n<|sid_begin|><s_a_0><s_b_0><s_c_7> or"
        >>> read_generation(text, whole=False), read_generation(text, whole=True)
        (7, None)
    """
    said = text.rpartition(END_OF_THINKING)[2].strip()
    if not whole:
        found = _SID.search(said)
    else:
        inside = next((part for part in said.split(OPEN) if part.strip()), "") if OPEN in said else said
        found = _SID.fullmatch(inside.partition(CLOSE)[0].strip() if OPEN in said else inside)
    return None if found is None else number_of(tuple(map(int, found.groups())))
