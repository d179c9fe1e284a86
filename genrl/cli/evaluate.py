"""`evaluate`: score a finished run."""

import argparse
from pathlib import Path
from typing import Any

from genrl.cli.configuration import compose
from genrl.cli.flags import add_command, add_config
from genrl.errors import ConfigError


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    evaluate = add_command(commands, "evaluate", "rank the full catalogue for held-out users with a trained run", run)
    evaluate.add_argument(
        "--run", metavar="FOLDER", type=Path, help="folder of a run or of a stage; or name it by its configuration"
    )
    evaluate.add_argument("--split", choices=("valid", "test"), default="test", help="held-out part (default: test)")
    add_config(evaluate)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    from genrl.config import run_folder

    if options.run is None:
        folder = run_folder(compose(options))
    else:
        folder = options.run
        _refuse_config(options)
    from genrl.runs.rescore import evaluate_run

    evaluate_run(folder, split=options.split, overrides=options.overrides, stages=options.stage or ())


def _refuse_config(options: argparse.Namespace) -> None:
    """A run folder has its own configuration: flags that choose another would be ignored."""
    given = [
        f"--{name}"
        for name in ("config", "objective", "baseline", "layout", "experiment", "output")
        if getattr(options, name)
    ]
    if given or options.seed is not None:
        named = ", ".join(given or ["--seed"])
        raise ConfigError(f"--run brings its own configuration, so {named} would be ignored. Give one or the other.")
