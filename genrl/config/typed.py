"""Plain values into the schema, one by one, so that every bad value is found and named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genrl.config.checks import Problem
from genrl.config.layers import SLOTS, Tree
from genrl.config.schema import RunConfig
from genrl.errors import misfit, suggest


def dotted_keys(schema: Any = RunConfig, prefix: str = "") -> Iterator[str]:  # noqa: ANN401 (a dataclass)
    """Every option of the schema as a dotted key.

    Example:
        >>> "rl.max_steps" in set(dotted_keys())
        True
    """
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint):
            yield from dotted_keys(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def to_typed(tree: Tree) -> tuple[RunConfig, list[Problem]]:
    """Return the configuration of a merged tree; an option with a problem keeps its default."""
    node = OmegaConf.structured(RunConfig)
    problems = list(_fill(node, RunConfig, tree, ""))
    problems += _unresolved(node)
    config: Any = OmegaConf.to_object(node)
    config.rewards = {name: options for name, options in config.rewards.items() if options is not None}
    return config, [*problems, *_slots(config)]


def _fill(node: DictConfig, schema: Any, tree: Tree, prefix: str) -> Iterator[Problem]:  # noqa: ANN401
    hints = get_type_hints(schema)
    for name, value in tree.items():
        key, hint = f"{prefix}{name}", hints.get(name)
        if hint is None:
            yield Problem((key,), _unknown(key, str(name), list(hints), prefix))
        elif not is_dataclass(hint):
            value = _unquoted(value, hint)
            try:
                OmegaConf.update(node, key, value, merge=False)
            except (OmegaConfBaseException, TypeError) as error:
                default = OmegaConf.select(node, key)
                plain = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
                yield Problem((key,), misfit(value, hint, error, plain))
        elif isinstance(value, dict):
            yield from _fill(node, hint, value, f"{key}.")
        elif value is not None:  # an empty section of a file is null: nothing to set
            first = next(iter(get_type_hints(hint)))
            yield Problem((key,), f"is a group of options, not a value. Set one of them, e.g. {key}.{first}")


def _unresolved(node: DictConfig) -> Iterator[Problem]:
    """Find each interpolation such as ${oc.env:DATA} that leads nowhere, and put its default back."""
    while True:
        try:
            OmegaConf.to_object(node)
        except OmegaConfBaseException as error:
            key = str(error.full_key)
            OmegaConf.update(node, key, OmegaConf.select(OmegaConf.structured(RunConfig), key), merge=False)
            yield Problem((key,), str(error).splitlines()[0])
        else:
            return


def _slots(config: RunConfig) -> Iterator[Problem]:
    for slot in SLOTS:
        if not isinstance(getattr(config, slot).get("name"), str):
            default = getattr(RunConfig(), slot)["name"]
            yield Problem((slot,), f"needs the name of a component, e.g. {slot}.name={default}")
    for name, options in config.rewards.items():
        if not isinstance(options, dict):
            yield Problem((f"rewards.{name}",), f"must be a group of options or null, e.g. rewards.{name}.weight=1.0")


def _unknown(key: str, name: str, siblings: list[str], prefix: str) -> str:
    known = list(dotted_keys())
    if key in known:
        parts = key.split(".")
        return f"is not an option by that name in a file. Nest it: {': {'.join(parts)}: ...{'}' * (len(parts) - 1)}"
    hint = suggest(name, siblings)
    if not hint:
        elsewhere = [other for other in known if other.rpartition(".")[2] == name]
        hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else suggest(key, known)
    return f"is not an option.{hint} Options {'of ' + prefix[:-1] if prefix else 'at the top'}: {', '.join(siblings)}"


def _unquoted(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """YAML reads a bare on or off as a boolean; give the word back where it is one of the choices."""
    word = {True: "on", False: "off"}.get(value) if isinstance(value, bool) else None
    return word if word is not None and get_origin(hint) is Literal and word in get_args(hint) else value
