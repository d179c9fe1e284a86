"""`slates`: the best slates of a run, as a file that stage `activate` learns."""

import argparse
from math import isfinite
from pathlib import Path
from typing import Any

from genrl.cli.configuration import import_plugins
from genrl.cli.flags import add_command, add_plugin
from genrl.errors import ConfigError
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    slates = add_command(commands, "slates", "write the best slates of a run for training prompts to a file", run)
    slates.add_argument("--run", metavar="FOLDER", type=Path, required=True, help="folder of a finished run of slates")
    slates.add_argument("--out", metavar="JSONL", type=Path, required=True, help="file that is written")
    help_above = "keep slates with a larger weighted sum of rewards than this (default: 0)"
    slates.add_argument("--above", metavar="REWARD", type=float, default=0.0, help=help_above)
    slates.add_argument("--prompts", metavar="N", type=int, help="of so many RL prompts, a random part (default: all)")
    add_plugin(slates)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    if options.prompts is not None and options.prompts < 1:
        raise ConfigError(f"--prompts {options.prompts}: give at least 1.")
    if not isfinite(options.above):
        raise ConfigError(f"--above {options.above}: give a finite number.")
    import_plugins(options)
    from genrl.runs.slates import write_slates

    found = write_slates(
        options.run, options.out, above=options.above, prompts=options.prompts, overrides=options.overrides
    )
    print("\n".join(map(safe, found.lines())))
