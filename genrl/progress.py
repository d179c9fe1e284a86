"""One look for everything that takes long: what is done, how fast, how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from genrl.terminal import paragraphs, safe

FIRST, EVERY = 5.0, 60.0
"""Seconds to the first line, and between lines, where there is no terminal."""


class SpeedColumn(ProgressColumn):
    """Units per second, or per minute where that is less than one."""

    def render(self, task: Task) -> Text:
        """Return e.g. "512.0 users/s", or nothing before the first estimate."""
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        unit = task.fields["unit"]
        return Text(f"{speed:.1f} {unit}/s" if speed >= 1 else f"{60 * speed:.1f} {unit}/min")


class Display:
    """Bars on stderr, so that tables on stdout can be piped; lines, the first one soon, where that is no terminal.

    Args:
        transient: whether bars disappear when they are done.
        period: seconds that the speed is a mean of.
        clock: tells seconds.
    """

    def __init__(
        self, *, transient: bool = False, period: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = Console(stderr=True)
        self._speed = SpeedColumn()
        self._clock, self._due = clock, clock() + FIRST
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            self._speed,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            transient=transient,
            console=console,
            disable=not console.is_terminal,
            get_time=clock,
            speed_estimate_period=period,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def add(self, name: str, total: float | None, unit: str, done: int = 0) -> TaskID:
        """Begin to count something, in units in the plural; the total may be unknown."""
        task = self._bars.add_task(safe(name), total=total or 0.0, completed=done, note="", unit=unit)
        if total is None:
            self._bars.tasks[-1].total = None
        return task

    def move(
        self, task: TaskID, done: float, *, name: str | None = None, note: str | None = None, tell: bool = False
    ) -> None:
        """Say how much is done now, under another name or with a note; `tell` prints a line if lines are printed."""
        further: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(task, completed=done, description=None if name is None else safe(name), **further)
        self.tell(now=tell)

    def remove(self, task: TaskID) -> None:
        """Show something no longer."""
        self._bars.remove_task(task)

    def tell(self, *, now: bool = False) -> None:
        """Where there is no terminal, print a line of all that is counted, if the last one is long ago or `now`."""
        if self._bars.disable and (now or self._clock() >= self._due):
            self._due = self._clock() + EVERY
            for task in self._bars.tasks:
                self.say(self._line(task))

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(Text(paragraphs(line)), soft_wrap=True)

    def _line(self, task: Task) -> str:
        total = "" if task.total is None else f" of {task.total:,.0f}"
        left = task.time_remaining
        parts = [
            f"{task.completed:,.0f}{total} {task.fields['unit']}",
            self._speed.render(task).plain,
            "" if left is None or task.finished else f"{timedelta(seconds=left)} left",
            task.fields["note"].strip(),
        ]
        return f"{task.description}: {', '.join(filter(None, parts))}"


@contextmanager
def progress_bar(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a display inside the block; the block calls what it is given with the number of units just done.

    Example:
        >>> with progress_bar("counting", total=3, unit="steps") as advance:
        ...     for _ in range(3):
        ...         advance(1)
    """
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        display.move(task, done)

    with Display(transient=True) as display:
        task = display.add(name, total, unit)
        yield advance
