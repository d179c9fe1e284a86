"""`sid`: build Semantic IDs."""

import argparse
from typing import Any

from genrl.cli.configuration import compose
from genrl.cli.flags import add_command, add_config
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    sid = add_command(commands, "sid", "build the Semantic IDs of a catalogue and report collisions", run)
    add_config(sid)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    config = compose(options)
    from genrl.runs.fit import build_sids

    print("\n".join(map(safe, build_sids(config).report.lines())))
