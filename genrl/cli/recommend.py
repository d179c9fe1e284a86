"""`recommend`: the best next items after histories."""

import argparse
from pathlib import Path
from typing import Any

from genrl.cli.configuration import import_plugins
from genrl.cli.flags import add_command, add_plugin
from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.given import lines_of, parsed
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    recommend = add_command(commands, "recommend", "the best next items for given histories", run)
    recommend.add_argument("--run", metavar="FOLDER", type=Path, required=True, help="run folder")
    recommend.add_argument("--history", metavar="ITEMS", help="item ids or titles, oldest first, between commas")
    help_file = 'one history per line: ["id", ..] or {"history": ["id", ..], "days": ..}; for titles with commas, too'
    recommend.add_argument("--history-file", metavar="JSONL", type=Path, help=help_file)
    help_days = "how many days ago each item of --history was chosen, for prompts that tell it (prompt.window_days)"
    recommend.add_argument("--days", metavar="DAYS", help=help_days)
    recommend.add_argument("--top", metavar="N", type=int, default=10, help="items per history (default: 10)")
    recommend.add_argument("--exclude-history", action="store_true", help="leave out items of the history")
    help_only = "recommend only the items of this file, one id or title per line (in stock, say)"
    recommend.add_argument("--only", metavar="FILE", type=Path, help=help_only)
    recommend.add_argument("--cold", action="store_true", help="recommend only items that are rare in training")
    recommend.add_argument(
        "--exact", action="store_true", help="widen the search until the list is provably the best of all items"
    )
    help_thinking = "print what a policy that thinks wrote before it named the first item"
    recommend.add_argument("--show-thinking", action="store_true", help=help_thinking)
    add_plugin(recommend)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    histories, days = read_histories(options.history, options.history_file, options.days)
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: give at least 1.")
    import_plugins(options)
    from genrl.runs.recommend import recommend

    found = recommend(
        options.run,
        histories,
        options.top,
        exclude_seen=options.exclude_history,
        only=None if options.only is None else _lines(options.only, "--only"),
        cold=options.cold,
        exact=options.exact,
        days=days,
        overrides=options.overrides,
    )
    if options.show_thinking and any(each.thinking is None for each in found):
        raise UnsupportedError(
            f"{options.run} writes no thinking that could be shown: its items are named at once. Leave --show-thinking "
            f"out, or train with layout=blocked and stage activate."
        )
    for history, each in zip(histories, found, strict=True):
        print(f"after {', '.join(map(safe, history))}:")
        blocks = each.thinking if options.show_thinking else None
        for number, block in enumerate(blocks or [], start=1):
            print(f"      thought {number}: {safe(block)}")
        for rank, (item, title, score) in enumerate(each.items, start=1):
            print(f"{rank:4d}  {score:9.4f}  {safe(item)}  {safe(title)}")


def _lines(file: Path, flag: str) -> list[str]:
    """The lines of a text file that are not empty."""
    lines = [line.strip() for _, line in lines_of(file, flag)]
    if not lines:
        raise DataError(f"{flag} {file}: the file names no item, so nothing could be recommended.")
    return lines


def read_histories(
    text: str | None, file: Path | None, days: str | None = None
) -> tuple[list[list[str]], list[list[float]] | None]:
    """Histories from the command line and from a file, as item ids or titles, and the days that are told of them.

    Args:
        text: one history, between commas.
        file: JSON lines, each a list or an object with the list under "history", and maybe one under "days".
        days: how many days ago each item of `text` was chosen, between commas.

    Returns:
        The histories, and days for each, [] for those without; None if there are none at all.

    Raises:
        ConfigError: if days on the command line have no history there, or are no numbers.
        DataError: naming file and line, or if there is no history at all.

    Example:
        >>> read_histories("17, 4", None, "12, 0.5")
        ([['17', '4']], [[12.0, 0.5]])
    """
    if days is not None and text is None:
        raise ConfigError("--days is about the items of --history. Give that, too; in a file, write them beside each.")
    found: list[tuple[list[str], list[float]]] = []
    if text is not None:
        try:
            told = [] if days is None else [float(number) for number in days.split(",")]
        except ValueError as error:
            raise ConfigError(f"--days {days!r}: {error}. Give numbers between commas, e.g. 12,3,0.") from error
        found.append(([item.strip() for item in text.split(",") if item.strip()], told))
    if file is not None:
        found += [_history(line, place) for place, line in lines_of(file, "--history-file")]
    histories, ago = [history for history, _ in found], [told for _, told in found]
    if not histories or not all(histories):
        raise DataError('there is no item to recommend after. Give --history "id,id" or --history-file FILE.')
    return histories, ago if any(ago) else None


def _history(line: str, place: str) -> tuple[list[str], list[float]]:
    """A history and the days that are told of its items."""
    try:
        value = parsed(line)
    except ValueError as error:
        raise DataError(f"{place}: {error}. Write one list of item ids per line.") from error
    days: Any = []
    if isinstance(value, dict):
        days = value.get("days", [])
        value = value.get("history")
    if not isinstance(value, list) or not all(isinstance(item, (str, int)) for item in value):
        raise DataError(
            f'{place}: {line.strip()[:80]!r} is no history. Write ["id", "id"] or {{"history": ["id", "id"]}}.'
        )
    if not isinstance(days, list) or not all(type(each) in (int, float) for each in days):
        raise DataError(f'{place}: "days" must be a list of numbers, e.g. [12, 3, 0].')
    return [str(item) for item in value], days
