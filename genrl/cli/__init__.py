"""The command line: `python -m genrl` and a command, `build_parser` has the list.

Nothing heavy is imported before a command runs, so help and misspelt options answer at once.
"""

import argparse
import errno
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genrl.cli import compare, evaluate, export, fit, listing, plan, recommend, selftest, sid, slates, verify
from genrl.errors import ComponentError, ConfigError, GenRLError, Stopped, out_of_memory, refusal, suggest
from genrl.given import reason
from genrl.stopping import handled
from genrl.terminal import lasting_output, paragraphs

SHORTHANDS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "steps": "max_steps",
    "bs": "prompts",
    "batch_size": "prompts",
}
"""What other tools call an option, for hints only."""
REFUSALS = {
    errno.ENOSPC: "So the disk is full. Free some space, or write elsewhere with --output FOLDER.",
    errno.EDQUOT: "Free some of your space, or write elsewhere with --output FOLDER.",
    errno.EACCES: "Change its mode, or write elsewhere with --output FOLDER.",
    errno.EPERM: "Change its mode, or write elsewhere with --output FOLDER.",
    errno.EROFS: "Write elsewhere with --output FOLDER.",
    errno.ENAMETOOLONG: "Give a shorter path or name.",
    errno.ENOENT: "It was there, or its folder was, when the command began: bring it back, or give another one.",
    errno.ENOTDIR: "A part of its path is no folder. Give another path.",
    errno.EEXIST: "A file has the name that a folder is to have. Remove it, or give another path.",
    errno.EISDIR: "It is a folder, where a file is wanted. Remove it, or give another path.",
    errno.ELOOP: "Its links lead in a circle. Remove them.",
    errno.ESTALE: "The disk that it lies on was exchanged. Give the same command again.",
    errno.EIO: "The disk fails. Copy what is there elsewhere.",
}
"""Number with which the system refuses a file -> what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `python -m genrl`; by default those of the process.

    Returns:
        Exit code: 0; 2 for an error the user can mend (one message, no traceback); 128 + N when signal N ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with lasting_output(), handled(), _safe_warnings():
            return _run(words)
    except Stopped as stop:
        print(f"genrl: stopped by {stop}. `fit --resume` (or the same `compare`) goes on from there.", file=sys.stderr)
        return stop.code
    except GenRLError as error:
        return _complain(str(error))
    except Exception as error:
        answer = _answer(error)
        if not answer:
            raise
        return _complain(answer)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `parse` adds the overrides that argparse cannot know."""
    parser = argparse.ArgumentParser(
        prog="genrl",
        description="Reinforcement learning for generative recommenders, with interchangeable policy objectives.",
        epilog="Start with: python -m genrl fit --objective sapo    (toy catalogue, CPU, offline)",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in (fit, plan, compare, evaluate, sid, recommend, slates, export, verify, selftest, listing):
        command.add(commands)
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
    options, extras = parser.parse_known_args(_without_auto(words))
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


def _without_auto(words: Sequence[str]) -> list[str]:
    """Words with `--resume auto` as `--resume`, which is what it means.

    A flag with a value that may be left out would take the override behind it for one.

    Example:
        >>> _without_auto(["fit", "--resume", "auto", "seed=1", "--resume=auto"])
        ['fit', '--resume', 'seed=1', '--resume']
    """
    kept = [word for before, word in zip(["", *words], words, strict=False) if (before, word) != ("--resume", "auto")]
    return ["--resume" if word == "--resume=auto" else word for word in kept]


@contextmanager
def _safe_warnings() -> Iterator[None]:
    """Within the block, warnings show what data and paths hold as `genrl.terminal` does."""
    before = warnings.showwarning  # Lightning replaces the function that words them

    def shown(message: Any, *about: Any, **more: Any) -> None:  # noqa: ANN401 (as the library has it)
        text = paragraphs(message)
        before(message if text == str(message) else text, *about, **more)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = before


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


def _run(words: list[str]) -> int:
    options = parse(words)
    if options.command is None:
        build_parser().print_help(sys.stderr)
        return 2
    options.words = words
    from genrl.config.saved import trusting

    with trusting(getattr(options, "trust", False)):
        try:
            options.execute(options)
        except SystemExit as stop:  # of a plug-in: nothing of genrl leaves a command in this way
            raise ComponentError(
                f"something that this command called ended the process with sys.exit({stop.code!r}), so it is not "
                f"done. Look for sys.exit or exit() in your plug-ins."
            ) from stop
    return 0


def _answer(error: Exception) -> str:
    """What to do about an error that the machine makes and nobody's code; empty for any other."""
    if out_of_memory(error):
        return (
            f"out of memory ({reason(error)}). What needs less: "
            f"align.items_per_step and activate.examples_per_step while training, evaluate.batch and evaluate.beam "
            f"while ranking, rollout.micro_batch in stage rl; everywhere trainer.checkpointing=true, "
            f"model.dtype=bfloat16, model.quantize=nf4, data.max_history=10."
        )
    number = refusal(error)
    if number not in REFUSALS:
        return ""
    return f"{getattr(error, 'filename', None) or 'a file'}: {reason(error).rstrip('.')}. {REFUSALS[number]}"


def _complain(message: str) -> int:
    print(f"genrl: {paragraphs(message)}", file=sys.stderr)
    return 2
