"""What a comparison consists of: rows, seeds, grids and a budget, turned into ordinary runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from genrl.config import RunConfig, run_folder
from genrl.errors import ConfigError, suggest
from genrl.files import key_of
from genrl.layouts import thinks
from genrl.objectives import OBJECTIVES
from genrl.policy.rollout import check_method
from genrl.runs.stages import SUPERVISED, supervised_stages

Compose = Callable[[list[str]], RunConfig]
"""Words after `python -m genrl` -> the checked configuration they ask for."""
Length = Callable[[RunConfig], int]
"""Configuration -> tokens per completion."""
SHORT = {"lr": "rl.learning_rate", "kl": "objective.kl_coef"}
"""Short names of options in a grid."""
SECTIONS = ("rl", "rollout", "objective", "rewards")
"""Sections that the shared stages do not depend on, so that rows may differ in them."""
OWN = {"name": "--objectives", "objective": "--objectives", "seed": "--seeds"}
"""Options that a comparison sets itself -> what to use instead."""
RESERVED = (*SUPERVISED, "most_popular", "repeat_last", "item_knn")
"""Rows that every report has."""
UNITS = ("steps", "prompts", "tokens", "seconds")
UNLIMITED = 10**9
"""Steps of a run that ends by the clock."""


@dataclass(frozen=True)
class Grid:
    """Values of one option to choose from."""

    name: str
    """The option as the user wrote it; part of the names of runs."""
    option: str
    values: tuple[str, ...]
    row: str | None = None
    """The only row it is for; None: all."""


@dataclass(frozen=True)
class Budget:
    """What every run may spend in stage `rl`."""

    unit: str
    amount: int

    def overrides(self, config: RunConfig, length: Length) -> list[str]:
        """The options that make a run keep to the budget, which must be one rollout at least."""
        if self.unit == "seconds":
            return [f"rl.max_steps={UNLIMITED}", f"trainer.extra.max_time.seconds={self.amount}"]
        if self.unit == "steps":
            return [f"rl.max_steps={self.amount}"]
        rollout = config.rollout.prompts
        if self.unit == "tokens":
            rollout *= length(config) * completions(config)
        rollouts = self.amount // rollout
        if not rollouts:
            raise ConfigError(
                f"--budget {self.unit}={self.amount}: one rollout of {config.objective['name']} takes {rollout} "
                f"{self.unit}. Give at least as many, or lower rollout.prompts."
            )
        return [f"rl.max_steps={rollouts * config.rollout.epochs * config.rollout.minibatches}"]


@dataclass(frozen=True)
class Run:
    """One `fit`: the words after `python -m genrl`, and what they mean."""

    words: tuple[str, ...]
    config: RunConfig

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    @property
    def max_steps(self) -> int | None:
        """Optimiser steps of stage `rl`; None for a run without it, or one that ends by the clock."""
        steps = self.config.rl.max_steps
        return None if "rl" not in self.config.stages or steps == UNLIMITED else steps


@dataclass(frozen=True)
class Candidate:
    """One setting of a row: its point of the grid (none: empty) and its runs, one per seed."""

    point: Mapping[str, str]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """All runs that a comparison may need."""

    rows: Mapping[str, tuple[Candidate, ...]]
    """Row of the report -> what its setting is chosen from."""
    shared: Run
    """The stages before `rl` alone, made before everything else."""

    @property
    def runs(self) -> list[Run]:
        return [run for candidates in self.rows.values() for candidate in candidates for run in candidate.runs]


def parse_rows(text: str) -> dict[str, str]:
    """Read `--objectives`: names, or NAME=OBJECTIVE for a row of another name.

    Example:
        >>> parse_rows("grpo,wide=sapo")
        {'grpo': 'grpo', 'wide': 'sapo'}
    """
    rows: dict[str, str] = {}
    for part in _parts(text, "--objectives"):
        name, equals, objective = part.partition("=")
        if not name or (equals and not objective) or re.search(r"[/:\s]", name):
            raise ConfigError(f"--objectives {text}: {part!r} is no row. Write an objective, or NAME=OBJECTIVE.")
        if name in rows:
            raise ConfigError(f"--objectives {text}: {name!r} stands there twice. Give one of them a name: a={name}.")
        if name in RESERVED:
            raise ConfigError(f"--objectives {text}: {name} is a row of every report. Choose another name.")
        rows[name] = objective or name
    return rows


def completions(config: RunConfig) -> int:
    """Completions per prompt that the objective learns from; for the supervised control without thinking the target."""
    options = dict(config.objective)
    objective = OBJECTIVES.build(options.pop("name"), options)
    return 1 if objective.trains_on_targets and not thinks(config) else config.rollout.group_size


def check_baseline(name: str, rows: Collection[str]) -> None:
    """Refuse a baseline that is no row."""
    if name not in rows:
        raise ConfigError(f"--baseline {name}: no such row.{suggest(name, rows)} Rows: {', '.join(rows)}.")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `--seeds`: different whole numbers of at least 0."""
    parts = _parts(text, "--seeds")
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong or len({int(part) for part in parts}) < len(parts):
        reason = f"{wrong[0]!r} is no seed" if wrong else "a seed stands there twice"
        raise ConfigError(f"--seeds {text}: {reason}. Write different whole numbers, e.g. --seeds 0,1,2.")
    return tuple(int(part) for part in parts)


def parse_budget(text: str) -> Budget:
    """Read `--budget UNIT=AMOUNT`."""
    unit, _, amount = text.partition("=")
    if unit not in UNITS:
        raise ConfigError(f"--budget {text}: no unit {unit!r}.{suggest(unit, UNITS)} Units: {', '.join(UNITS)}.")
    if not amount.isdecimal() or not int(amount):
        raise ConfigError(f"--budget {text}: {amount!r} is no whole number above 0. Write e.g. --budget {unit}=200.")
    return Budget(unit, int(amount))


def parse_grid(text: str, rows: Mapping[str, str]) -> Grid:
    """Read one `--grid [ROW:]NAME=VALUE,VALUE`.

    Example:
        >>> parse_grid("lr=1e-5,3e-5", {"grpo": "grpo"})
        Grid(name='lr', option='rl.learning_rate', values=('1e-5', '3e-5'), row=None)
    """
    row, rest = of_row(text, rows, "--grid ")
    name, _, values = rest.partition("=")
    option = SHORT.get(name, name)
    _check_option(option, f"--grid {text}", [*SHORT, "rl.NAME", "rollout.NAME", "objective.NAME", "rewards.NAME"])
    found = tuple(_parts(values, f"--grid {text}", r",(?![^\[]*\])"))
    if len(set(found)) < len(found):
        raise ConfigError(f"--grid {text}: a value stands there twice.")
    return Grid(name, option, found, row)


def of_row(text: str, rows: Collection[str], flag: str) -> tuple[str | None, str]:
    """Split `ROW:key=value`; the row is None where none is named.

    Example:
        >>> of_row("sapo:rl.max_steps=5", ["grpo", "sapo"], "")
        ('sapo', 'rl.max_steps=5')
    """
    row, colon, _ = text.partition("=")[0].partition(":")
    if not colon:
        return None, text
    if row not in rows:
        raise ConfigError(f"{flag}{text}: no row {row!r}.{suggest(row, rows)} Rows: {', '.join(rows)}.")
    return row, text[len(row) + 1 :]


def make_plan(
    rows: Mapping[str, str],
    seeds: Sequence[int],
    grids: Sequence[Grid],
    budget: Budget | None,
    common: tuple[Sequence[str], Sequence[str]],
    compose: Compose,
    length: Length,
) -> Plan:
    """All runs of a comparison, each checked as `fit` would check it.

    Args:
        rows: row of the report -> objective.
        seeds: of every row.
        grids: options to choose on validation.
        budget: None leaves `rl.max_steps` as configured.
        common: flags of `fit` that all runs have, and overrides; one that begins with `ROW:` is for that row only.
        compose: called with words.
        length: called for a budget in tokens only.

    Raises:
        ConfigError: with the first problem of the first run that has one.
    """
    flags, given = common
    overrides = [of_row(text, rows, "") for text in given]
    _check_overrides(overrides, grids, budget)

    def words(row: str, seed: int, point: Mapping[str, str]) -> list[str]:
        name = "-".join([row, *(f"{key}{value}" for key, value in point.items())])
        options = {grid.name: grid.option for grid in grids}
        return [
            *("fit", *flags, "--objective", rows[row], "--seed", str(seed)),
            *(text for owner, text in overrides if owner in (None, row)),
            *([f"name={name}"] if name != rows[row] else []),
            *(f"{options[key]}={value}" for key, value in point.items()),
        ]

    def run(row: str, seed: int, point: Mapping[str, str]) -> Run:
        asked = words(row, seed, point)
        if budget is not None:
            asked += budget.overrides(compose(asked), length)
        return Run((*asked, "--resume"), compose(asked))

    found = {
        row: tuple(Candidate(point, tuple(run(row, seed, point) for seed in seeds)) for point in _points(grids, row))
        for row in rows
    }
    _check_runs([run for candidates in found.values() for candidate in candidates for run in candidate.runs])
    first = words(next(iter(rows)), seeds[0], {})
    # Another configuration needs another folder; the stages themselves are found by their own keys.
    begun = compose(first)
    first += [f"stages=[{','.join(supervised_stages(begun))}]", f"name=shared-{key_of(replace(begun, output=''))}"]
    return Plan(found, Run((*first, "--resume"), compose(first)))


def _parts(text: str, flag: str, separator: str = ",") -> list[str]:
    parts = [part.strip() for part in re.split(separator, text)]
    if not all(parts):
        raise ConfigError(f"{flag} {text}: a value is missing. Write them between commas, without blanks.")
    return parts


def _points(grids: Sequence[Grid], row: str) -> list[dict[str, str]]:
    """All points of the grid of a row; one, with nothing in it, if the row has no grid."""
    own = [grid for grid in grids if grid.row in (None, row)]
    return [
        dict(zip([grid.name for grid in own], values, strict=True))
        for values in product(*(grid.values for grid in own))
    ]


def _check_option(option: str, place: str, known: Sequence[str]) -> None:
    section, dot, _ = option.partition(".")
    if section not in SECTIONS or not dot or option == "objective.name":
        raise ConfigError(
            f"{place}: {option!r} is no option of stage rl, and all rows share the stages before it."
            f"{suggest(option, known)} Allowed: {', '.join(known)}."
        )


def _check_overrides(overrides: Sequence[tuple[str | None, str]], grids: Sequence[Grid], budget: Budget | None) -> None:
    for row, text in overrides:
        option = text.partition("=")[0]
        own = "objective" if option == "objective.name" else option
        if own in OWN:
            raise ConfigError(f"{text}: a comparison sets {own} itself. Use {OWN[own]}.")
        if row is not None:
            _check_option(option, f"{row}:{text}", [f"{section}.NAME" for section in SECTIONS])
    for number, grid in enumerate(grids):
        same = [other for other in grids[:number] if other.option == grid.option]
        if any(grid.row is None or other.row in (None, grid.row) for other in same):
            raise ConfigError(f"--grid {grid.name}: {grid.option} has a grid already. Put all values into one.")
        if budget is not None and grid.option == "rl.max_steps":
            raise ConfigError("--grid rl.max_steps: --budget sets it. Leave one of them out.")


def _check_runs(runs: Sequence[Run]) -> None:
    folders = [run.folder for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} would hold two runs. Give the rows different names, and leave `name` out of files.")
    for run in runs:
        check_method(run.config.rollout, thinking=thinks(run.config))
        if not supervised_stages(run.config) or run.config.stages[-1] != "rl":
            raise ConfigError(
                f"stages = {run.config.stages}: a comparison needs rl and a stage before it, which all rows share. Use "
                f"[align, rl], [align, activate, rl] to teach a layout to think, or [activate, rl] for titles."
            )
