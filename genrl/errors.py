"""Errors a user can mend: each message says what, where, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GenRLError(Exception):
    """Base of every error that the command line prints without a traceback (exit code 2)."""


class ConfigError(GenRLError, ValueError):
    """A value in the configuration is missing, unknown or contradicts another."""


class UnknownComponentError(GenRLError, LookupError):
    """A registry has no entry of that name."""


class DataError(GenRLError, ValueError):
    """A row, a column or a file of the user's data cannot be used."""


class LayoutError(GenRLError, ValueError):
    """A completion does not follow the grammar of its layout."""


class CheckpointError(GenRLError, RuntimeError):
    """A checkpoint is missing, truncated, or belongs to another model or configuration."""


class UnsupportedError(GenRLError, RuntimeError):
    """A combination of options that is known not to work, refused before anything is built."""


class NonFiniteError(GenRLError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the batch was saved for inspection."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty string.

    Example:
        >>> suggest("sappo", ["grpo", "sapo"])
        " Did you mean 'sapo'?"
        >>> suggest("zzz", ["grpo"])
        ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
