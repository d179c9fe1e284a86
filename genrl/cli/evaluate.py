"""`evaluate`: score a finished run, or a published benchmark."""

import argparse
from pathlib import Path
from typing import Any

from genrl.cli.configuration import compose, import_plugins
from genrl.cli.flags import add_command, add_config
from genrl.errors import ConfigError
from genrl.terminal import safe

OF_BENCHMARKS = ("task", "data", "generations", "model")
"""Flags that go with --benchmark."""


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    evaluate = add_command(commands, "evaluate", "rank the full catalogue for held-out users with a trained run", run)
    evaluate.add_argument(
        "--run", metavar="FOLDER", type=Path, help="folder of a run or of a stage; or name it by its configuration"
    )
    evaluate.add_argument("--split", choices=("valid", "test"), default="test", help="held-out part (default: test)")
    help_benchmark = "score a published benchmark instead: recif (docs/recif.md); its options are key=value too"
    evaluate.add_argument("--benchmark", metavar="NAME", help=help_benchmark)
    evaluate.add_argument("--task", metavar="NAME", help="of the benchmark")
    evaluate.add_argument("--data", metavar="FOLDER", type=Path, help="test rows of the benchmark")
    evaluate.add_argument("--generations", metavar="FILE", type=Path, help="recorded generations to score")
    evaluate.add_argument("--model", metavar="FOLDER", type=Path, help="local checkpoint that is to be run and scored")
    add_config(evaluate)


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    if options.benchmark is not None:
        return _benchmark(options)
    given = [f"--{name}" for name in OF_BENCHMARKS if getattr(options, name, None) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} belongs to a benchmark. Name it as well: --benchmark recif.")
    return _run(options)


def _run(options: argparse.Namespace) -> None:
    from genrl.config import run_folder

    overrides = options.overrides
    if options.run is None:
        config = compose(options)
        folder = run_folder(config)
        overrides = [*overrides, *(["model.trust_remote_code=true"] if config.model.trust_remote_code else [])]
    else:
        folder = options.run
        import_plugins(options)
        _refuse_config(options)
    from genrl.runs.rescore import evaluate_run

    evaluate_run(folder, split=options.split, overrides=overrides, stages=options.stage or ())


def _benchmark(options: argparse.Namespace) -> None:
    names = ("run", *_of_config(options), *(["trust"] if options.trust else []))
    given = [name for name in names if getattr(options, name) not in (None, [])]
    if given:
        raise ConfigError(f"--benchmark has no use for --{given[0]}: that belongs to runs. Leave one of them out.")
    if options.task is None:
        raise ConfigError("--benchmark needs --task NAME, e.g. --task ad.")
    if (options.generations is None) == (options.model is None):
        raise ConfigError("--benchmark needs one of --generations FILE to score and --model FOLDER to run.")
    if options.model is not None and options.data is None:
        raise ConfigError("--model needs --data FOLDER, where the test rows of the benchmark lie.")
    if options.generations is not None and options.output is not None:
        raise ConfigError("--output belongs to --model: scores of a file are written beside it. Leave it out.")
    from genrl.benchmarks import BENCHMARKS
    from genrl.config.layers import combine, read_override

    values = combine(map(read_override, options.overrides), {})
    benchmark = BENCHMARKS.build(options.benchmark, values)
    if options.model is None:
        found = benchmark.score_file(options.task, options.generations, options.data)
    else:
        output = Path(options.output or "runs") / options.benchmark / options.model.name
        found = benchmark.run(options.task, options.model, options.data, output)
    print("\n".join(map(safe, found.lines())))


def _of_config(options: argparse.Namespace) -> list[str]:
    """Names of the flags that a configuration is made of."""
    names = ("config", "objective", "baseline", "layout", "stage", "experiment", "plugin", "seed")
    return [name for name in names if hasattr(options, name)]


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
