"""Errors a user can mend: each message says what, where, what is allowed and what to do."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from signal import Signals
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

WORDS: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
LISTS: dict[Any, str] = {
    int: "a list of integers such as [1, 2]",
    float: "a list of numbers such as [0.9, 0.95]",
    str: "a list of texts such as [a, b]",
}


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


class UntrustedError(GenRLError, RuntimeError):
    """A run folder names code that nobody has said may run."""


class NonFiniteError(GenRLError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the batch was saved for inspection."""


class SelfTestError(GenRLError, RuntimeError):
    """This installation computes something else than it should."""


class Stopped(BaseException):
    """A signal asked this process to stop; no error, so nothing that mends errors may catch it.

    Args:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(Signals(signal).name)
        self.signal = signal

    @property
    def code(self) -> int:
        """Exit code as shells and schedulers count: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.signal


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def wrong_value(value: Any, hint: Any, error: Exception, default: Any = MISSING) -> str:  # noqa: ANN401 (whatever there is)
    """Say what is wrong with the value of an option; of a type without words here, in those of the library's `error`.

    Example:
        >>> wrong_value("many", int, TypeError("bad"), 50)
        'is not an integer. The default is 50.'
    """
    allowed = _allowed(hint)
    if not allowed or (isinstance(value, Mapping) and get_origin(hint) is dict):
        return f"does not fit: {str(error).splitlines()[0]}."
    choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    otherwise = "" if default is MISSING else f" The default is {json.dumps(default)}."
    return f"is not {allowed}.{suggest(str(value), choices)}{otherwise}"


def _allowed(hint: Any) -> str:  # noqa: ANN401
    """Say in words what a type allows, if there are words for it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return "a group of options"
    if origin is list:
        return LISTS.get(arguments[0], "")
    if origin in (Union, UnionType):
        parts = [_allowed(argument) for argument in arguments]
        return " or ".join(parts) if all(parts) else ""
    return WORDS.get(hint, "")
