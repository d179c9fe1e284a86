"""The command line: `python -m genrl fit | compare | evaluate | sid | recommend | list`.

Nothing heavy is imported before a command runs, so help and misspelt options answer at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.errors import ConfigError, DataError, GenRLError, UnsupportedError, suggest

if TYPE_CHECKING:
    from genrl.compare.finished import Rows
    from genrl.compare.plan import Plan, Run
    from genrl.compare.studies.thinking import Question
    from genrl.config import RunConfig
    from genrl.registry import Registry

BUILT_IN = {
    "grpo": "Group Relative Policy Optimization (arXiv:2402.03300)",
    "gbpo": "Gradient-Bounded Policy Optimization (arXiv:2508.20900)",
    "sapo": "Step-Aligned Policy Optimization (arXiv:2605.17648; not Soft Adaptive, arXiv:2511.20347)",
    "sage": "Sequence-level Adaptive Gradient Evolution (arXiv:2601.21452)",
    "dr_grpo": "GRPO Done Right (arXiv:2503.20783)",
    "dapo": "Decoupled Clip and Dynamic Sampling Policy Optimization (arXiv:2503.14476)",
    "gspo": "Group Sequence Policy Optimization (arXiv:2507.18071)",
    "gdpo": "Group reward-Decoupled normalization Policy Optimization (arXiv:2601.05242)",
    "ecpo": "Early-Clipped GRPO (arXiv:2506.13695)",
    "cispo": "Clipped Importance Sampling Policy Optimization (arXiv:2506.13585)",
    "bapo": "Balanced Policy Optimization with Adaptive Clipping (arXiv:2510.18927)",
    "ce": "cross-entropy on the targets of the same prompts, the supervised control",
}
"""The objectives that `fit --help` names; a test compares them with the registry, which would import torch."""
BASELINES = ("most_popular", "repeat_last", "item_knn", "sasrec", "rearec", "tiger", "lc_rec")
"""The baselines that `fit --help` names; a test compares them with the registry."""
SHORTHANDS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "steps": "max_steps",
    "bs": "prompts",
    "batch_size": "prompts",
}
"""What other tools call an option, for hints only."""
OVERRIDES = """\
Any option is set with key=value, anywhere on the line:
  rl.max_steps=100 rollout.group_size=8 evaluate.k=[5,10,20] objective.kl_coef=0.01
All options: docs/configuration.md
"""


def _registry(module: str, name: str) -> Registry[Any]:
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


REGISTRIES: dict[str, Callable[[], Registry[Any]]] = {
    "objective": partial(_registry, "genrl.objectives", "OBJECTIVES"),
    "layout": partial(_registry, "genrl.layouts", "LAYOUTS"),
    "baseline": partial(_registry, "genrl.recommenders", "BASELINES"),
    "reward": partial(_registry, "genrl.rewards", "REWARDS"),
    "sid": partial(_registry, "genrl.sid", "SID_BUILDERS"),
}
"""Kind of component -> its registry, imported when asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `python -m genrl`; by default those of the process.

    Returns:
        Exit code: 0; 2 for an error the user can mend (one message, no traceback); 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except GenRLError as error:
        return _complain(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("genrl: interrupted. `fit --resume` (or the same `compare`) goes on from there.", file=sys.stderr)
        return 130
    except Exception as error:
        if not _disk_full(error):
            raise
        place = getattr(error, "filename", None)
        where = f" while writing {place}" if place else ""
        return _complain(
            f"the disk is full{where} ({error}). Free some space, or write elsewhere with --output FOLDER."
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `parse` adds the overrides that argparse cannot know."""
    parser = argparse.ArgumentParser(
        prog="genrl",
        description="Reinforcement learning for generative recommenders, with interchangeable policy objectives.",
        epilog="Start with: python -m genrl fit --objective sapo    (toy catalogue, CPU, offline)",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    fit = _command(commands, "fit", "train: the stages of the configuration in their order", _fit)
    _add_config(fit)
    fit.epilog = "\n".join(
        ["objectives:", *(f"  {name:<8} {title}" for name, title in BUILT_IN.items()), "", OVERRIDES]
    )
    fit.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")

    compare = _command(commands, "compare", "run objectives with several seeds and report what differs", _compare)
    _add_shared(compare)
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
    help_report = "run nothing; report what is finished, of any name if --objectives is left out"
    add("--report-only", action="store_true", help=help_report)
    compare.epilog = f"NAME:key=value sets an option, and --grid NAME:key=.. a grid, of one row.\n\n{OVERRIDES}"

    evaluate = _command(
        commands, "evaluate", "rank the full catalogue for held-out users with a trained run", _evaluate
    )
    evaluate.add_argument("--run", metavar="FOLDER", type=Path, help="run folder; or name the run by its configuration")
    evaluate.add_argument("--split", choices=("valid", "test"), default="test", help="held-out part (default: test)")
    _add_config(evaluate)

    sid = _command(commands, "sid", "build the Semantic IDs of a catalogue and report collisions", _sid)
    _add_config(sid)

    recommend = _command(commands, "recommend", "the best next items for given histories", _recommend)
    recommend.add_argument("--run", metavar="FOLDER", type=Path, required=True, help="run folder")
    recommend.add_argument("--history", metavar="ITEMS", help="item ids or titles, oldest first, between commas")
    help_file = 'one history per line: ["id", ..] or {"history": ["id", ..]}; for titles with commas, too'
    recommend.add_argument("--history-file", metavar="JSONL", type=Path, help=help_file)
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

    listing = _command(commands, "list", "components by name, installed plug-ins among them", _list, overrides=False)
    kinds = (*REGISTRIES, *(f"{kind}s" for kind in REGISTRIES))
    listing.add_argument("kind", nargs="?", choices=kinds, metavar="KIND", help=", ".join(REGISTRIES))
    listing.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module or .py file to load first"
    )
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `key=value` overrides may stand anywhere and end up in `.overrides`.

    Raises:
        ConfigError: for an unknown flag or a word that is no override, with what to write instead.

    Example:
        >>> options = parse(["fit", "seed=1", "--objective", "sapo", "rl.max_steps=5"])
        >>> options.objective, options.overrides
        ('sapo', ['seed=1', 'rl.max_steps=5'])
    """
    parser = build_parser()
    options, extras = parser.parse_known_args(list(words))
    options.overrides = []
    problems = []
    while extras:
        word = extras.pop(0)
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            if not equals and extras and not extras[0].startswith("-") and "=" not in extras[0]:
                value = extras.pop(0)
            problems.append(_unknown_flag(flag, value, options))
        elif "=" not in word:
            problems.append(
                f"{word!r} is neither a flag nor an override. Overrides are key=value, e.g. rl.max_steps=100."
            )
        elif not getattr(options, "takes_overrides", False):
            problems.append(f"{word!r}: this command has no configuration to override.")
        else:
            options.overrides.append(word)
    if problems:
        raise ConfigError("\n".join(problems))
    return options


def compose(options: argparse.Namespace) -> RunConfig:
    """The checked configuration that a parsed command line asks for."""
    from genrl.config import load_config

    names = ("objective", "baseline", "layout", "stage", "seed", "experiment", "output", "plugin")
    flags = {name: getattr(options, name) for name in names}
    if options.baseline is not None:
        _refuse_beside_baseline(options)
        flags["stage"] = ["baseline"]
    config = load_config(options.config, flags, options.overrides, REGISTRIES)
    if "rl" in config.stages:
        _check_objective(config)
    return config


def _refuse_beside_baseline(options: argparse.Namespace) -> None:
    """A baseline has no stages and no objective."""
    given = [f"--{name}" for name in ("objective", "stage") if getattr(options, name)]
    if given:
        raise ConfigError(f"--baseline {options.baseline} is a run of its own, without {' and '.join(given)}.")


def _check_objective(config: RunConfig) -> None:
    """Refuse rewards and groups that the objective cannot learn from, before a model is built."""
    from genrl.objectives import OBJECTIVES, Setting
    from genrl.rewards import REWARDS

    options = dict(config.objective)
    name = options.pop("name")
    objective = OBJECTIVES.build(name, options)
    counting = [reward for reward, values in config.rewards.items() if values.get("weight", 1) != 0]
    if not counting and not objective.trains_on_targets:
        raise ConfigError(
            f"rewards: none has a weight other than 0, so objective {name!r} has nothing to learn from. "
            "Add e.g. rewards.exact_match.weight=1."
        )
    steps = any(getattr(REWARDS.entry(reward).factory, "level", "step") == "step" for reward in counting)
    objective.check(Setting(tuple(config.rewards), steps, config.rollout.group_size), name)


def _run(words: list[str]) -> int:
    options = parse(words)
    if options.command is None:
        build_parser().print_help(sys.stderr)
        return 2
    options.words = words
    options.execute(options)
    sys.stdout.flush()
    return 0


def _command(
    commands: Any,  # noqa: ANN401 (argparse does not export the type)
    name: str,
    summary: str,
    execute: Callable[[argparse.Namespace], None],
    overrides: bool = True,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=OVERRIDES if overrides else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags = command._option_string_actions  # the same table that argparse suggests from
    command.set_defaults(execute=execute, takes_overrides=overrides, flags=flags)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    _add_shared(command)
    add = command.add_argument
    add("--objective", metavar="NAME", help=f"policy objective: {', '.join(BUILT_IN)}, or a plug-in's name")
    add("--baseline", metavar="NAME", help=f"run a baseline instead: {', '.join(BASELINES)}, or a plug-in's name")
    add("--stage", action="append", choices=("align", "activate", "rl"), help="run this stage only; repeatable")
    add("--seed", type=int, metavar="N", help="seed of the RL stage or of the baseline")


def _add_shared(command: argparse.ArgumentParser) -> None:
    """Flags of the configuration that all runs of a comparison share."""
    add = command.add_argument
    add(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="file over the defaults; repeatable, later ones win",
    )
    add(
        "--layout",
        metavar="NAME",
        help="layout of a completion: blocked (with thinking, the default) or sid; more: `genrl list layout`",
    )
    add("--experiment", metavar="NAME", help="folder that runs to be compared share")
    add("--output", metavar="FOLDER", help="where run folders go (default: runs)")
    add("--plugin", action="append", metavar="MODULE", help="module or .py file with components of yours; repeatable")


def _unknown_flag(flag: str, value: str, options: argparse.Namespace) -> str:
    from genrl.config import dotted_keys

    flags = [option[2:] for option in getattr(options, "flags", {}) if option.startswith("--")]
    hint = suggest(flag.lstrip("-"), flags).replace("mean '", "mean '--")
    name = flag.lstrip("-").replace("-", "_")
    name = SHORTHANDS.get(name, name)
    keys = sorted(dotted_keys(), key=lambda key: not key.startswith("rl."))
    leaves: dict[str, list[str]] = {}
    for key in keys:
        leaves.setdefault(key.rpartition(".")[2], []).append(key)
    fitting = [name] if name in keys else leaves.get(name, [])
    if fitting and getattr(options, "takes_overrides", False):
        written = " or ".join(f"{key}={value or '..'}" for key in fitting)
        return f"unknown flag {flag}. Options are set without dashes: write {written}."
    return f"unknown flag {flag}.{hint} Flags: {', '.join(f'--{known}' for known in flags)}."


def _fit(options: argparse.Namespace) -> None:
    config = compose(options)
    from genrl.runs.fit import fit

    fit(config, resume=options.resume, command=shlex.join(["python", "-m", "genrl", *options.words]))


def _compare(options: argparse.Namespace) -> None:
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: give at least 1.")
    if options.objectives is None and not options.report_only and not options.thinking:
        raise ConfigError("compare needs --objectives, e.g. --objectives grpo,gbpo,sapo,sage.")
    from genrl.compare.run import run_comparison
    from genrl.config import run_folder

    flags = _shared_words(options)
    if options.thinking:
        return _compare_thinking(options, flags)
    if options.objectives is None:
        folder = run_folder(compose(parse(["fit", *flags, *options.overrides]))).parent
        return _report(folder, None, options.baseline, [])
    plan = _plan(options, flags)
    failed = [] if options.report_only else run_comparison(plan, options.jobs)
    return _report(plan.shared.folder.parent, plan, options.baseline, failed)


def _compare_thinking(options: argparse.Namespace, flags: list[str]) -> None:
    from genrl.compare.plan import check_baseline
    from genrl.compare.studies.thinking import ROWS, compare_thinking, measure

    if options.baseline is not None:
        check_baseline(options.baseline, ROWS)
    plan, failed = compare_thinking(_question(options, flags), None if options.report_only else options.jobs)
    baseline = options.baseline if options.baseline in plan.rows else next(iter(plan.rows))
    _report(plan.shared.folder.parent, plan, baseline, failed, measure)


def _report(
    folder: Path,
    plan: Plan | None,
    baseline: str | None,
    failed: Sequence[Run],
    measure: Callable[[Rows], dict[str, Any]] | None = None,
) -> None:
    from genrl.compare.report import write_report  # takes seconds to load

    print(write_report(folder, plan, baseline, measure))
    print(f"report: {folder / 'report.html'}   as text: {folder / 'report.md'}", file=sys.stderr)
    if failed:
        names = ", ".join(run.folder.name for run in failed)
        raise GenRLError(f"{len(failed)} run(s) failed: {names}. Mend the cause and give the same command again.")


def _plan(options: argparse.Namespace, flags: list[str]) -> Plan:
    from genrl.compare.finished import found_rows
    from genrl.compare.plan import (
        check_baseline,
        make_plan,
        parse_budget,
        parse_grid,
        parse_rows,
        parse_seeds,
    )
    from genrl.compare.run import completion_length

    rows = parse_rows(options.objectives)
    plan = make_plan(
        rows,
        parse_seeds(options.seeds),
        [parse_grid(text, rows) for text in options.grid],
        None if options.budget is None else parse_budget(options.budget),
        (flags, options.overrides),
        compose=lambda words: compose(parse(words)),
        length=completion_length,
    )
    baselines = found_rows(plan.shared.folder.parent, "baseline")
    both = next((row for row in rows if row in baselines), None)
    if both is not None:
        raise ConfigError(
            f"--objectives {options.objectives}: {both} is a baseline that was run in this experiment. "
            "Choose another name."
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
        lambda words: compose(parse(words)),
    )


def _shared_words(options: argparse.Namespace) -> list[str]:
    """The flags of a comparison that are handed on to each `fit`."""
    words = []
    for name in ("config", "layout", "experiment", "output", "plugin"):
        value = getattr(options, name)
        for part in value if isinstance(value, list) else [value]:
            words += [] if part is None else [f"--{name}", part]
    return words


def _evaluate(options: argparse.Namespace) -> None:
    from genrl.config import run_folder

    if options.run is None:
        folder = run_folder(compose(options))
    else:
        folder = options.run
        _refuse_config(options)
    from genrl.runs.recommend import evaluate_run

    evaluate_run(folder, split=options.split, overrides=options.overrides)


def _refuse_config(options: argparse.Namespace) -> None:
    """A run folder has its own configuration: flags that choose another would be ignored."""
    given = [
        f"--{name}"
        for name in ("config", "objective", "baseline", "layout", "stage", "experiment", "output")
        if getattr(options, name)
    ]
    if given or options.seed is not None:
        named = ", ".join(given or ["--seed"])
        raise ConfigError(f"--run brings its own configuration, so {named} would be ignored. Give one or the other.")


def _sid(options: argparse.Namespace) -> None:
    config = compose(options)
    from genrl.runs.fit import build_sids

    print("\n".join(build_sids(config).report.lines()))


def _recommend(options: argparse.Namespace) -> None:
    histories = read_histories(options.history, options.history_file)
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: give at least 1.")
    from genrl.runs.recommend import recommend

    found = recommend(
        options.run,
        histories,
        options.top,
        exclude_seen=options.exclude_history,
        only=None if options.only is None else _lines(options.only, "--only"),
        cold=options.cold,
        exact=options.exact,
        overrides=options.overrides,
    )
    if options.show_thinking and any(each.thinking is None for each in found):
        raise UnsupportedError(
            f"{options.run} writes no thinking that could be shown: its items are named at once. Leave --show-thinking "
            f"out, or train with layout=blocked and stage activate."
        )
    for history, each in zip(histories, found, strict=True):
        print(f"after {', '.join(history)}:")
        blocks = each.thinking if options.show_thinking else None
        for number, block in enumerate(blocks or [], start=1):
            print(f"      thought {number}: {block}")
        for rank, (item, title, score) in enumerate(each.items, start=1):
            print(f"{rank:4d}  {score:9.4f}  {item}  {title}")


def _lines(file: Path, flag: str) -> list[str]:
    """The lines of a text file that are not empty."""
    if not file.is_file():
        raise DataError(f"{flag} {file}: no such file.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{flag} {file}: the file names no item, so nothing could be recommended.")
    return lines


def read_histories(text: str | None, file: Path | None) -> list[list[str]]:
    """Histories from the command line and from a file, as item ids or titles.

    Args:
        text: one history, between commas.
        file: JSON lines, each a list or an object with the list under "history".

    Raises:
        DataError: naming file and line, or if there is no history at all.

    Example:
        >>> read_histories("17, 4", None)
        [['17', '4']]
    """
    histories = [[item.strip() for item in text.split(",") if item.strip()]] if text is not None else []
    if file is not None:
        if not file.is_file():
            raise DataError(f"--history-file {file}: no such file.")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                histories.append(_history(line, f"{file}:{number}"))
    if not histories or not all(histories):
        raise DataError('there is no item to recommend after. Give --history "id,id" or --history-file FILE.')
    return histories


def _history(line: str, place: str) -> list[str]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: this is not JSON: {error}. Write one list of item ids per line.") from error
    if isinstance(value, dict):
        value = value.get("history")
    if not isinstance(value, list) or not all(isinstance(item, (str, int)) for item in value):
        raise DataError(
            f'{place}: {line.strip()[:80]!r} is no history. Write ["id", "id"] or {{"history": ["id", "id"]}}.'
        )
    return [str(item) for item in value]


def _list(options: argparse.Namespace) -> None:
    from genrl.registry import load_plugin

    for plugin in options.plugin:
        load_plugin(plugin)
    for kind in REGISTRIES:
        if options.kind not in (None, kind, f"{kind}s"):
            continue
        registry = REGISTRIES[kind]()
        broken = registry.broken()
        print(f"{registry.kind}s")
        for name in registry.names():
            print(f"  {name} (broken: {broken[name]})" if name in broken else f"  {_described(registry, name)}")


def _described(registry: Registry[Any], name: str) -> str:
    entry = registry.entry(name)
    names = ", ".join([name, *registry.aliases(name)])
    paper = f"arXiv:{entry.paper}" if entry.paper[:4].isdigit() else entry.paper
    return "  ".join([f"{names:<24}", entry.title, *([f"[{paper}]"] if paper else []), f"({entry.origin})"])


def _disk_full(error: BaseException) -> bool:
    """Whether the disk is full, as Python, safetensors or PyTorch say it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "PytorchStreamWriter failed writing" in str(error)


def _complain(message: str) -> int:
    print(f"genrl: {message}", file=sys.stderr)
    return 2
