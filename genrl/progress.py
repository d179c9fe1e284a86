"""One look for every progress bar: what is done, how fast, and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class SpeedColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return e.g. "512.0 users/s", or nothing before the first estimate."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


def make_progress(unit: str, *further: ProgressColumn, transient: bool = False) -> Progress:
    """Build a progress display on stderr, so that tables on stdout can be piped.

    Args:
        unit: what is counted, in the plural.
        further: columns behind the usual ones.
        transient: whether the bar disappears when it is done.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *further,
        transient=transient,
        console=Console(stderr=True),
    )


@contextmanager
def progress_bar(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar inside the block; the block calls what it is given with the number of units just done.

    Example:
        >>> with progress_bar("counting", total=3, unit="steps") as advance:
        ...     for _ in range(3):
        ...         advance(1)
    """
    with make_progress(unit, transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)
