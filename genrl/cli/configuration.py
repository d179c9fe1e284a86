"""The configuration that a parsed command line asks for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from genrl.errors import ConfigError

if TYPE_CHECKING:
    from genrl.config import RunConfig
    from genrl.registry import Registry


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


def import_plugins(options: argparse.Namespace) -> None:
    """Import the plug-ins of the command line, for commands that read a run folder and compose nothing."""
    from genrl.registry import load_plugin

    for plugin in options.plugin or ():
        load_plugin(plugin)


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
    from genrl.rewards.base import REWARDS, named

    options = dict(config.objective)
    name = options.pop("name")
    objective = OBJECTIVES.build(name, options)
    counting = [reward for reward, values in config.rewards.items() if values.get("weight", 1) != 0]
    if not counting and not objective.trains_on_targets:
        raise ConfigError(
            f"rewards: none has a weight other than 0, so objective {name!r} has nothing to learn from. "
            "Add e.g. rewards.exact_match.weight=1."
        )
    kinds = [named(reward, config.rewards[reward])[0] for reward in counting]
    steps = any(getattr(REWARDS.entry(kind).factory, "level", "step") == "step" for kind in kinds)
    kept = tuple(config.data.columns.attributes) if config.data.source == "files" else None  # toy items have their own
    objective.check(Setting(tuple(config.rewards), steps, config.rollout.group_size, attributes=kept), name)
