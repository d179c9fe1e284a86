"""`verify`: see whether a finished run still is what it was."""

import argparse
from pathlib import Path
from typing import Any

from genrl.cli.flags import add_command
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    summary = "see whether the files of finished runs are those they were finished with"
    verify = add_command(commands, "verify", summary, run, overrides=False)
    verify.add_argument(
        "--run", metavar="FOLDER", type=Path, required=True, nargs="+", help="folders of runs or stages"
    )


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    from genrl.runs.verify import verify

    for folder in options.run:
        print(safe(verify(folder)))
