"""Plain values into the schema, one by one, so that every bad value is found and named."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genrl.config.checks import Problem
from genrl.config.layers import SLOTS, Tree
from genrl.config.schema import RunConfig
from genrl.errors import suggest
from genrl.options import as_written, fill, hints_of, node_of, out_of_bounds

FORMER = {"align.shuffle_ties": ", in place of which there is data.ties", "prompt.context": "", "trainer.strategy": ""}
"""Options of earlier versions, which the folders of their runs hold -> what is there instead."""


def dotted_keys(schema: Any = RunConfig, prefix: str = "") -> Iterator[str]:  # noqa: ANN401 (a dataclass)
    """Every option of the schema as a dotted key, such as rl.max_steps."""
    for name, hint in hints_of(schema).items():
        if is_dataclass(hint):
            yield from dotted_keys(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def to_typed(tree: Tree, written: Tree | None = None) -> tuple[RunConfig, list[Problem]]:
    """The configuration of a merged tree of plain values; an option with a problem keeps its default.

    `written` has for each dotted key the scalar, or list of scalars, as it was written, for options of text.
    """
    node = node_of(RunConfig)
    found = fill(node, RunConfig, as_written(RunConfig, tree, written or {}), _unknown, defaults=True)
    problems = [Problem((key,), reason) for key, _, reason in found]
    config, unresolved = _resolved(node)
    misfits = list(out_of_bounds(RunConfig, vars(config)))
    problems += [*unresolved, *(Problem((key,), reason) for key, reason in misfits)]
    for key, _ in misfits:
        _put_back(node, key)
    if misfits:
        config, _ = _resolved(node)
    config.rewards = {name: options for name, options in config.rewards.items() if options is not None}
    return config, [*problems, *_slots(config)]


def _resolved(node: DictConfig) -> tuple[Any, list[Problem]]:
    """The configuration, with the default of each interpolation such as ${oc.env:DATA} that leads nowhere."""
    problems: list[Problem] = []
    while True:
        try:
            return OmegaConf.to_object(node), problems
        except OmegaConfBaseException as error:
            key = str(error.full_key) or _misled(node)
            _put_back(node, key)
            problems.append(Problem((key,), str(error).splitlines()[0]))


def _misled(node: DictConfig) -> str:
    """The first option that an interpolation gives what it cannot hold: OmegaConf names single values, not groups."""
    for key in dotted_keys():
        try:
            OmegaConf.select(node, key)
        except OmegaConfBaseException:
            return key
    raise AssertionError("nothing is wrong")


def _put_back(node: DictConfig, key: str) -> None:
    OmegaConf.update(node, key, OmegaConf.select(node_of(RunConfig), key), merge=False)


def _slots(config: RunConfig) -> Iterator[Problem]:
    for slot in SLOTS:
        if not isinstance(getattr(config, slot).get("name"), str):
            default = getattr(RunConfig(), slot)["name"]
            yield Problem((slot,), f"needs the name of a component, e.g. {slot}.name={default}")
    if "builder" in config.sid:
        yield Problem(("sid.builder",), "is not an option. Did you mean 'sid.name'?")
    for name, options in config.rewards.items():
        if not isinstance(options, dict):
            yield Problem((f"rewards.{name}",), f"must be a group of options or null, e.g. rewards.{name}.weight=1.0")


def _unknown(key: str, siblings: list[str]) -> str:
    if key in FORMER:
        instead = f"is an option of an earlier version{FORMER[key]}"
        return f"{instead}. Leave it out; its runs must be read by that version, or made anew"
    known = list(dotted_keys())
    prefix, _, name = key.rpartition(".")
    if key in known:
        parts = key.split(".")
        return f"is not an option by that name in a file. Nest it: {': {'.join(parts)}: ...{'}' * (len(parts) - 1)}"
    hint = suggest(name, siblings)
    if not hint:
        elsewhere = [other for other in known if other.rpartition(".")[2] == name]
        hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else suggest(key, known)
    return f"is not an option.{hint} Options {'of ' + prefix if prefix else 'at the top'}: {', '.join(siblings)}"
