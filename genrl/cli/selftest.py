"""`selftest`: see whether this installation computes what it should."""

import argparse
from typing import Any

from genrl.cli.configuration import REGISTRIES
from genrl.cli.flags import add_command
from genrl.errors import ConfigError, SelfTestError, suggest
from genrl.terminal import safe


def add(commands: Any) -> None:  # noqa: ANN401 (argparse does not export the type)
    """Add the command to a parser."""
    summary = "see within two minutes whether this installation computes what it should"
    selftest = add_command(commands, "selftest", summary, run, overrides=False)
    selftest.add_argument("--device", metavar="DEVICE", default="cpu", help="where the engine computes: cpu, cuda")
    selftest.add_argument("--only", metavar="NAME", action="append", default=[], help="one check; may be repeated")


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    from genrl.config import load_config
    from genrl.selftest import CHECKS, find_device, run

    names = options.only or list(CHECKS)
    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"--only {name}: no such check.{suggest(name, CHECKS)} Checks: {', '.join(CHECKS)}.")
    device = find_device(options.device)
    print(f"{len(names)} checks on {device}, about a minute")
    outcomes = []
    for outcome in run(lambda words: load_config(overrides=words, registries=REGISTRIES), device, names):
        outcomes.append(outcome)
        print(safe(_line(outcome)), flush=True)
    failed = [outcome.name for outcome in outcomes if not outcome.passed and not outcome.left_out]
    if failed:
        raise SelfTestError(
            f"{len(failed)} of {len(outcomes)} checks failed: {', '.join(failed)}. Numbers of this installation cannot "
            "be trusted. Install the versions that genrl asks for into a new environment; if they fail again, report "
            "it with these lines."
        )
    left_out = sum(outcome.left_out for outcome in outcomes)
    others = f", {left_out} could not be run" if left_out else ""
    print(f"{len(outcomes) - left_out} checks passed{others}: this installation computes what it should")


def _line(outcome: Any) -> str:  # noqa: ANN401 (its type would load torch)
    """One outcome in one line."""
    head = "ok    " if outcome.passed else "  -   " if outcome.left_out else "FAILED"
    check, found = outcome.check, outcome.found
    if found is None:
        said = ("not run: " if outcome.left_out else "") + outcome.trouble
    else:
        allowed = f"at most {check.allowed:.0e}" if check.allowed else "none"
        said = f"{check.about}: {found.difference:.1e} apart ({allowed} allowed, {found.cases:,} compared)"
    return f"{head} {outcome.name:<12} {said}, {outcome.seconds:.1f} s"
