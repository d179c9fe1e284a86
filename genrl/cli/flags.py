"""What the parsers of several commands share, and the names that help shows without importing torch."""

import argparse
from collections.abc import Callable
from typing import Any

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
    "opd": "On-policy distillation (arXiv:2306.13649)",
    "ce": "cross-entropy on the targets of the same prompts, the supervised control",
}
"""The objectives that `fit --help` names; a test compares them with the registry, which would import torch."""
BASELINES = ("most_popular", "repeat_last", "item_knn", "sasrec", "rearec", "tiger", "lc_rec")
"""The baselines that `fit --help` names; a test compares them with the registry."""
OVERRIDES = """\
Any option is set with key=value, anywhere on the line:
  rl.max_steps=100 rollout.group_size=8 evaluate.k=[5,10,20] objective.kl_coef=0.01
All options: docs/configuration.md
"""


def add_command(
    commands: Any,  # noqa: ANN401 (argparse does not export the type)
    name: str,
    summary: str,
    execute: Callable[[argparse.Namespace], None],
    overrides: bool = True,
) -> argparse.ArgumentParser:
    """The parser of one command, which `execute` runs."""
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


def add_config(command: argparse.ArgumentParser) -> None:
    """Flags of the configuration of one run."""
    add_shared(command)
    add = command.add_argument
    add("--objective", metavar="NAME", help=f"policy objective: {', '.join(BUILT_IN)}, or a plug-in's name")
    add("--baseline", metavar="NAME", help=f"run a baseline instead: {', '.join(BASELINES)}, or a plug-in's name")
    add("--stage", action="append", choices=("align", "activate", "rl"), help="this stage only; repeatable")
    add("--seed", type=int, metavar="N", help="seed of the RL stage or of the baseline")


def add_shared(command: argparse.ArgumentParser) -> None:
    """Flags of the configuration that all runs of a comparison share."""
    add = command.add_argument
    help_config = "file over the defaults; repeatable, later ones win"
    add("--config", action="append", default=[], metavar="YAML", help=help_config)
    help_layout = "layout of a completion: blocked (with thinking, the default) or sid; more: `genrl list layout`"
    add("--layout", metavar="NAME", help=help_layout)
    add("--experiment", metavar="NAME", help="folder that runs to be compared share")
    add("--output", metavar="FOLDER", help="where run folders go (default: runs)")
    add_plugin(command)


def add_plugin(command: argparse.ArgumentParser) -> None:
    """Flags that say which code may run: the user's own, and that of run folders."""
    help_plugin = "module or .py file with components of yours; repeatable"
    command.add_argument("--plugin", action="append", metavar="MODULE", help=help_plugin)
    help_trust = "run the plug-ins and the model code that run folders name (docs/reliability.md)"
    command.add_argument("--trust", action="store_true", help=help_trust)
