"""`export`: write what a run has learnt as a model folder to serve."""

import argparse
from pathlib import Path
from typing import Any

from genrl.cli.configuration import import_plugins
from genrl.cli.flags import add_command, add_plugin
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    export = add_command(commands, "export", "write the model of a finished run for transformers, vLLM and others", run)
    export.add_argument("--run", metavar="FOLDER", type=Path, required=True, help="folder of a finished run")
    export.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder that is written")
    add_plugin(export)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    import_plugins(options)
    from genrl.runs.export import export

    print("\n".join(map(safe, export(options.run, options.out, options.overrides).lines())))
