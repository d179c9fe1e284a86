"""`plan`: say what memory a run will need, without a GPU and without loading weights."""

import argparse
import re
from typing import Any

from genrl.cli.configuration import compose
from genrl.cli.flags import add_command, add_config
from genrl.errors import ConfigError
from genrl.terminal import safe

UNITS = {"MB": 2**20, "MIB": 2**20, "GB": 2**30, "GIB": 2**30}
"""Cards are named by 2^30 bytes, whatever the unit is called."""


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    plan = add_command(commands, "plan", "say what memory a run will need, and what to change if it does not fit", run)
    add_config(plan)
    help_memory = "memory of a GPU that need not be here, e.g. 24GB (default: what is free on this machine)"
    plan.add_argument("--gpu-memory", metavar="SIZE", help=help_memory)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    room = None if options.gpu_memory is None else size_of(options.gpu_memory)
    config = compose(options)
    from genrl.runs.plan import plan_run

    print("\n".join(map(safe, plan_run(config, room).lines())))


def size_of(text: str) -> float:
    """Bytes of a size such as 24GB.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> size_of("24GB") == size_of("24 GiB") == 24 * 2**30
        True
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--gpu-memory {text}: give a size with its unit, e.g. 24GB or 80000MB.")
    return float(found[1]) * UNITS[found[2].upper()]
