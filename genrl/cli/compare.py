"""`compare`: several objectives, several seeds, one report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.cli.configuration import compose
from genrl.cli.flags import OVERRIDES, add_command, add_shared
from genrl.errors import ConfigError, FolderError, GenRLError

if TYPE_CHECKING:
    from genrl.compare.finished import Rows
    from genrl.compare.plan import Plan, Run
    from genrl.compare.studies.thinking import Question
    from genrl.config import RunConfig


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    compare = add_command(commands, "compare", "run objectives with several seeds and report what differs", run)
    add_shared(compare)
    add = compare.add_argument
    add("--objectives", metavar="NAMES", help="between commas; NAME=OBJECTIVE gives a row of the report another name")
    add("--seeds", metavar="N,N", default="0,1,2", help="seeds of every objective (default: 0,1,2)")
    help_baseline = "row that the others are compared with (default: the last stage before rl)"
    add("--baseline", metavar="NAME", help=help_baseline)
    add("--budget", metavar="UNIT=N", help="of each rl stage, in steps, prompts, tokens (of completions) or seconds")
    help_grid = "choose an option on validation: lr=1e-5,3e-5, kl=0,0.01, or a dotted option; repeatable"
    add("--grid", metavar="NAME=V,V", action="append", default=[], help=help_grid)
    add("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    help_thinking = "one objective (default: sapo) with and without thinking, at matched training and request costs"
    add("--thinking", action="store_true", help=help_thinking)
    help_report = "run nothing; report what is finished, of any name without --objectives; evaluate.* scores it again"
    add("--report-only", action="store_true", help=help_report)
    help_place = "where the report goes (default: into the folder of the experiment)"
    add("--report", metavar="FOLDER", type=Path, help=help_place)
    compare.epilog = f"NAME:key=value sets an option, and --grid NAME:key=.. a grid, of one row.\n\n{OVERRIDES}"


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: give at least 1.")
    if options.objectives is None and not options.report_only and not options.thinking:
        raise ConfigError("compare needs --objectives, e.g. --objectives grpo,gbpo,sapo,sage.")
    from genrl.compare.run import run_comparison
    from genrl.config import run_folder

    flags = _shared_words(options)
    evaluate = [text for text in options.overrides if text.startswith("evaluate.")] if options.report_only else []
    options.overrides = [text for text in options.overrides if text not in evaluate]
    if options.thinking:
        return _compare_thinking(options, flags, evaluate)
    if options.objectives is None:
        folder = run_folder(_composed(["fit", *flags, *options.overrides])).parent
        return _report(folder, options.report, None, options.baseline, [], evaluate)
    plan = _plan(options, flags)
    failed = [] if options.report_only else run_comparison(plan, options.jobs)
    return _report(plan.shared.folder.parent, options.report, plan, options.baseline, failed, evaluate)


def _compare_thinking(options: argparse.Namespace, flags: list[str], evaluate: Sequence[str]) -> None:
    from genrl.compare.plan import check_baseline
    from genrl.compare.studies.thinking import ROWS, compare_thinking, measure

    if options.baseline is not None:
        check_baseline(options.baseline, ROWS)
    plan, failed = compare_thinking(_question(options, flags), None if options.report_only else options.jobs)
    baseline = options.baseline if options.baseline in plan.rows else next(iter(plan.rows))
    _report(plan.shared.folder.parent, options.report, plan, baseline, failed, evaluate, measure)


def _report(
    folder: Path,
    place: Path | None,
    plan: Plan | None,
    baseline: str | None,
    failed: Sequence[Run],
    evaluate: Sequence[str],
    measure: Callable[[Rows], dict[str, Any]] | None = None,
) -> None:
    from genrl.compare.report import make_report, write_report  # takes seconds to load
    from genrl.compare.summary import show

    report = make_report(folder, plan, baseline, measure, evaluate)
    problems = []
    try:
        write_report(report, folder, place or folder)
        show(report, place or folder)
    except FolderError as error:
        show(report, None)
        problems.append(str(error))
    if failed:
        names = ", ".join(run.folder.name for run in failed)
        problems.append(f"{len(failed)} run(s) failed: {names}. Mend the cause and give the same command again.")
    problems += [f"left out of the report: {reason}" for reason in report.damaged.values()]
    if problems:
        raise GenRLError("\n".join(problems))


def _plan(options: argparse.Namespace, flags: list[str]) -> Plan:
    from genrl.compare.finished import found_rows
    from genrl.compare.plan import check_baseline, make_plan, parse_budget, parse_grid, parse_rows, parse_seeds
    from genrl.compare.run import completion_length

    rows = parse_rows(options.objectives)
    plan = make_plan(
        rows,
        parse_seeds(options.seeds),
        [parse_grid(text, rows) for text in options.grid],
        None if options.budget is None else parse_budget(options.budget),
        (flags, options.overrides),
        compose=_composed,
        length=completion_length,
    )
    baselines = found_rows(plan.shared.folder.parent, "baseline", damaged={})  # the report names these
    both = next((row for row in rows if row in baselines), None)
    if both is not None:
        raise ConfigError(
            f"--objectives {options.objectives}: {both} is a baseline that was run in this experiment. Choose another "
            "name."
        )
    if options.baseline is not None:
        check_baseline(options.baseline, [*plan.shared.config.stages, *rows, *baselines])
    return plan


def _question(options: argparse.Namespace, flags: list[str]) -> Question:
    from genrl.compare.plan import parse_budget, parse_rows, parse_seeds
    from genrl.compare.studies.thinking import ROWS, Question

    objectives = list(parse_rows(options.objectives or "sapo").items())
    if len(objectives) > 1 or objectives[0][0] != objectives[0][1]:
        raise ConfigError(f"--objectives {options.objectives}: --thinking compares the rows {', '.join(ROWS)} of one.")
    if options.grid:
        raise ConfigError(
            "--grid: --thinking chooses nothing. Choose with a comparison of its own, then set the value."
        )
    return Question(
        objectives[0][1],
        parse_seeds(options.seeds),
        None if options.budget is None else parse_budget(options.budget),
        flags,
        options.overrides,
        _composed,
    )


def _shared_words(options: argparse.Namespace) -> list[str]:
    """The flags of a comparison that are handed on to each `fit`."""
    words = []
    for name in ("config", "layout", "experiment", "output", "plugin"):
        value = getattr(options, name)
        for part in value if isinstance(value, list) else [value]:
            words += [] if part is None else [f"--{name}", part]
    return [*words, *(["--trust"] if options.trust else [])]


def _composed(words: list[str]) -> RunConfig:
    from genrl.cli import parse  # which knows this command

    return compose(parse(words))
