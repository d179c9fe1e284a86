"""Code of users: what it raises becomes one message that names it and the line, and no exit of its own is a success."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genrl.errors import ComponentError, GenRLError, out_of_memory

LONGEST = 400
"""Characters of an error's own text that a message repeats."""


@contextmanager
def calling(what: str, *owners: object) -> Iterator[None]:
    """Within the block runs code that `owners` (functions, classes, objects) are of.

    What genrl's own components raise is left as it is, and so is running out of memory.

    Args:
        what: how messages call the code, such as "reward 'mine'".
        owners: what is called; modules tell whose code it is.

    Raises:
        ComponentError: if code of a user raised something, or called `sys.exit`.
    """
    try:
        yield
    except GenRLError:
        raise
    except (Exception, SystemExit) as error:
        modules = {_module(owner) for owner in owners if not is_built_in(owner)}
        if not modules or out_of_memory(error):
            raise
        where = _place(error, modules)
        if isinstance(error, SystemExit):
            raise ComponentError(
                f"{what} called sys.exit({'' if error.code is None else repr(error.code)}){where}. It must not end "
                f"the process; let it raise an error that says what is wrong."
            ) from error
        raise ComponentError(f"{what} raised {type(error).__name__}: {str(error)[:LONGEST]}{where}.") from error


def is_built_in(owner: object) -> bool:
    """Whether a function, class or object is genrl's own."""
    return _module(owner).partition(".")[0] == "genrl"


def _module(owner: object) -> str:
    return str(getattr(owner, "__module__", None) or type(owner).__module__)


def _place(error: BaseException, modules: set[str]) -> str:
    """The deepest line of the code in question, or of any."""
    found = list(traceback.walk_tb(error.__traceback__))
    own = [pair for pair in found if pair[0].f_globals.get("__name__") in modules]
    frame, line = (own or found)[-1]
    path = frame.f_code.co_filename
    text = linecache.getline(path, line).strip()
    return f" ({path}, line {line}{f': {text}' if text else ''})"


def described(value: Any) -> str:  # noqa: ANN401 (whatever a user returns)
    """What a value is, in words.

    Example:
        >>> described(None), described([1.0, 2.0]), described("x")
        ('None', 'a list of length 2', 'a str')
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        device = f" on {value.device}" if hasattr(value, "device") else ""
        return f"a {kind} of {value.dtype} with shape {list(value.shape)}{device}"
    return f"a {kind} of length {len(value)}" if isinstance(value, (list, tuple, dict)) else f"a {kind}"
