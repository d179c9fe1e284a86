"""Signals that end a process: what is at work ends where it can go on from, and the exit code says why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from genrl.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, and what schedulers send before they take a machine away: `SIGUSR1` is what they are asked for in good time
(`sbatch --signal=USR1@120`), and what Lightning would answer with a checkpoint and a job of its own."""


class _Asked:
    """What this process has been asked; one for all, as signals are."""

    signal: int | None = None
    """The first signal that arrived; None: nobody asked."""
    handled: bool = False
    """Whether this process answers signals itself."""
    patient: bool = False
    """Whether whoever is at work looks at `signal` itself and must not be cut off."""


_asked = _Asked()


@contextmanager
def handled() -> Iterator[None]:
    """Answer `SIGNALS` with `Stopped` where they arrive; inside `patient` they are only noted.

    The same signal again ends the process at once. Outside the main thread, where Python has no signals, and inside
    another `handled` nothing changes.
    """
    if _asked.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.signal, _asked.handled = None, True
    before = {number: signal.signal(number, _arrived) for number in SIGNALS}
    try:
        yield
    finally:
        _asked.handled = False
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def answer() -> None:
    """Take the signals back from a library that took them over inside `handled`."""
    if _asked.handled and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _arrived)


@contextmanager
def patient() -> Iterator[None]:
    """Only note signals: whoever is at work looks at `asked` between its steps.

    Raises:
        Stopped: at the end, if a signal arrived.
    """
    before, _asked.patient = _asked.patient, True
    try:
        yield
    finally:
        _asked.patient = before
    if _asked.signal is not None and not before:
        raise Stopped(_asked.signal)


def ask(number: int) -> None:
    """Note a signal that another process of the run has received."""
    _asked.signal = _asked.signal or number


def asked() -> int:
    """Number of the signal that arrived, 0 if there was none."""
    return _asked.signal or 0


def _arrived(number: int, frame: FrameType | None) -> Any:  # noqa: ANN401 (what Python wants of handlers)
    name = signal.Signals(number).name
    if _asked.signal == number:
        tell(f"\ngenrl: {name} again: ended at once.\n")
        os._exit(128 + number)
    if _asked.signal is not None:  # Ctrl-C in a terminal, and SIGTERM from the comparison that it reached, too
        return
    _asked.signal = number
    if not _asked.patient:
        raise Stopped(number)
    tell(f"\ngenrl: {name}: stopping at the end of this step; a second one stops at once.\n")


def tell(text: str) -> None:
    """Write past Python's buffers, which the interrupted code may hold."""
    with suppress(OSError):
        os.write(2, text.encode())
