"""The command line: `python -m genrl fit | compare | evaluate | sid | recommend | slates | verify | selftest | list`.

Nothing heavy is imported before a command runs, so help and misspelt options answer at once.
"""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genrl.cli import compare, evaluate, fit, listing, recommend, selftest, sid, slates, verify
from genrl.errors import ConfigError, GenRLError, Stopped, suggest
from genrl.stopping import handled
from genrl.terminal import paragraphs

SHORTHANDS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "steps": "max_steps",
    "bs": "prompts",
    "batch_size": "prompts",
}
"""What other tools call an option, for hints only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `python -m genrl`; by default those of the process.

    Returns:
        Exit code: 0; 2 for an error the user can mend (one message, no traceback); 128 + N when signal N ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with handled(), _safe_warnings():
            return _run(words)
    except Stopped as stop:
        print(f"genrl: stopped by {stop}. `fit --resume` (or the same `compare`) goes on from there.", file=sys.stderr)
        return stop.code
    except GenRLError as error:
        return _complain(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
    for command in (fit, compare, evaluate, sid, recommend, slates, verify, selftest, listing):
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
        options.execute(options)
    sys.stdout.flush()
    return 0


def _disk_full(error: BaseException) -> bool:
    """Whether the disk is full, as Python, safetensors or PyTorch say it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "PytorchStreamWriter failed writing" in str(error)


def _complain(message: str) -> int:
    print(f"genrl: {paragraphs(message)}", file=sys.stderr)
    return 2
