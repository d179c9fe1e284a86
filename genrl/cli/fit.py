"""`fit`: train."""

import argparse
import shlex
from typing import Any

from genrl.cli.configuration import compose
from genrl.cli.flags import BUILT_IN, OVERRIDES, add_command, add_config

HELP = "go on with the run in the folder from its last checkpoint, or begin it (`--resume auto` says the same)"


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    fit = add_command(commands, "fit", "train: the stages of the configuration in their order", run)
    add_config(fit)
    fit.epilog = "\n".join(
        ["objectives:", *(f"  {name:<8} {title}" for name, title in BUILT_IN.items()), "", OVERRIDES]
    )
    fit.add_argument("--resume", action="store_true", help=HELP)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    config = compose(options)
    from genrl.runs.fit import fit

    fit(config, resume=options.resume, command=shlex.join(["python", "-m", "genrl", *options.words]))
