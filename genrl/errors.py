"""Errors a user can mend: each message says what, where, what is allowed and what to do."""

import difflib
import errno
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
LONG = 200
"""Signs of a value that messages show."""


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


class ComponentError(GenRLError, ValueError):
    """Code of a user, such as a reward or an objective, raised, or returned what it must not."""


class NonFiniteError(GenRLError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the batch was saved for inspection."""


class FolderError(GenRLError, OSError):
    """What a command writes into can no longer be written to: full, read-only or gone."""


class MemoryShortageError(GenRLError, RuntimeError):
    """Memory runs out however little is computed at once."""


class LostError(GenRLError, RuntimeError):
    """Another process of the run is gone, so this one cannot go on."""


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or, as PyTorch says it there, on the CPU.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
        True
    """
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))


WORDED = {
    "No space left on device": errno.ENOSPC,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied (os error": errno.EACCES,
}
"""How PyTorch and safetensors say what the system refused -> its number."""
KINDS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "full")
KINDS |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "read-only")
"""Number of a refusal -> why nothing can be written."""


def refusal(error: BaseException) -> int:
    """With which number (`errno`) the system refused something, told by it or by a library; 0 for any other error.

    Example:
        >>> refusal(ValueError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
        True
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return next((number for words, number in WORDED.items() if words in str(error)), 0)


def unwritable(error: BaseException) -> str:
    """Why a file could not be written: "full", "read-only", or "" for any other error.

    Example:
        >>> unwritable(ValueError("I/O error: No space left on device (os error 28)")), unwritable(ValueError("a bug"))
        ('full', '')
    """
    return KINDS.get(refusal(error), "")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def shown(value: Any) -> str:  # noqa: ANN401 (whatever there is)
    """A value as Python writes it, cut where it is long.

    Example:
        >>> shown([1]), len(shown("x" * 5000))
        ('[1]', 218)
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists inside each other
        text = f"a {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """A text of which a message shows so much that it stays readable."""
    return text if len(text) <= LONG else f"{text[:LONG]} ... ({len(text):,} signs)"


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
