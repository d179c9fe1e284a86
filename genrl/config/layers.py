"""Layers of a configuration before it has types: files with their includes, and overrides; each remembers its place."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genrl.errors import ConfigError, DataError, shown, suggest
from genrl.given import read_text

Tree = dict[str, Any]
MISREAD = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)
"""What readers of YAML raise; the last two of impossible dates, of numbers too long and of brackets too deep."""
DEEPEST = 30
"""Groups and lists inside each other at most; options need five."""
SIGNS = re.compile(r"(?!~$|\[.*\]$|\{.*\}$)[^\w'\"]+")
"""A value without letters, digits and quotes that is no null, list or group: a separator such as | or ::."""
SLOTS = ("sid", "objective", "layout", "baseline")
"""Sections that hold a component: its name and options of its own."""


@dataclass(frozen=True)
class Layer:
    """Some values of the configuration and where they were written."""

    place: str
    """File, flag or "command line"; for messages."""
    values: Tree
    lines: Mapping[str, int] = field(default_factory=dict)
    """Dotted key -> line of the file."""
    written: Tree = field(default_factory=dict)
    """Dotted key -> its scalar, or list of scalars, as written; null is None."""

    def get(self, key: str) -> Any:  # noqa: ANN401
        """The value of a dotted key; None if this layer does not set it or sets only options below it."""
        node: Any = self.values
        for part in [key] if key in self.values else key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return None if isinstance(node, Mapping) else node

    def where(self, key: str) -> str | None:
        """The place of a dotted key, with its line; None if this layer does not set it or anything below it."""
        if key in self.lines:
            return f"{self.place}:{self.lines[key]}"
        node: Any = self.values
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return None
            node = node[part]
        return self.place


def read_file(path: Path, chain: tuple[Path, ...] = ()) -> tuple[list[Layer], list[str]]:
    """Layers of the files that a YAML file includes, relative to its folder, and of itself; and what is wrong.

    `chain` are the files that led here, to find a cycle.
    """
    try:
        text = read_text(path, "--config or include")
    except DataError as error:
        return [], [_hint(path) or str(error)]
    here = path.resolve()
    if here in chain:
        names = " -> ".join(file.name for file in (*chain[chain.index(here) :], here))
        return [], [f"{path}: the files include each other: {names}. Remove one of the includes."]
    try:
        values, lines, written = _parse(text)
    except MISREAD as error:
        return [], [_syntax(path, error)]
    included = values.pop("include", None)
    layers, problems = [], []
    for name in included if isinstance(included, list) else [] if included is None else [included]:
        if not isinstance(name, str):
            problems.append(f"{path}: include: {name!r} is not the path of a file. Write include: [other.yaml].")
            continue
        below, wrong = read_file(path.parent / name, (*chain, here))
        layers += below
        problems += wrong
    return [*layers, Layer(str(path), values, lines, written)], problems


def read_override(text: str) -> Layer:
    """Read one `key=value` of the command line; the value is YAML, or text where it is nothing but signs.

    Raises:
        ConfigError: if it is not of that form.

    Example:
        >>> read_override("rl.betas=[0.9, 0.95]").values, read_override("data.separator=::").values
        ({'rl': {'betas': [0.9, 0.95]}}, {'data': {'separator': '::'}})
    """
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"command line: {text!r} is not an override. Write key=value, e.g. rl.max_steps=100.")
    if key.count(".") >= DEEPEST:
        raise ConfigError(f"command line: {shown(text)} names no option: {key.count('.') + 1:,} names in a row.")
    try:
        source = f"'{value}'" if SIGNS.fullmatch(value) else value
        node = _compose(source)
        values = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={source}"]))
    except MISREAD as error:
        why = _why(error)
        raise ConfigError(f"command line: the value of {key} is not YAML: {shown(value)}: {why}. Quote it.") from error
    block = isinstance(node, yaml.MappingNode) and not node.flow_style  # such as `The user bought: `
    written = {key: value} if block else dict(_written(node, key))
    return Layer("command line", values, written=written)  # type: ignore[arg-type]


def combine(layers: Iterable[Layer], base: Tree) -> Tree:
    """Merge layers over `base`, later wins; another objective or layout drops the options of the one before."""
    tree = base
    for layer in layers:
        values = {key: _named(key, value) for key, value in layer.values.items()}
        for slot in SLOTS:
            new, old = values.get(slot), tree.get(slot)
            if isinstance(new, dict) and isinstance(old, dict) and new.get("name", old.get("name")) != old.get("name"):
                tree = {**tree, slot: {}}
        tree = _merge(tree, values)
    return tree


def _named(key: str, value: Any) -> Any:  # noqa: ANN401
    """`objective: sapo` is short for `objective: {name: sapo}`; an empty section sets nothing."""
    if key not in SLOTS or isinstance(value, dict):
        return value
    return {"name": value} if isinstance(value, str) else {} if value is None else value


def _merge(tree: Tree, values: Tree) -> Tree:
    merged = dict(tree)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse(text: str) -> tuple[Tree, dict[str, int], Tree]:
    root = _compose(text)
    if root is None:
        return {}, {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("the file holds no options; write lines of the form `key: value`")
    values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    return values, dict(_lines(root)), dict(_written(root))  # type: ignore[return-value]


def _compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, read by the fast parser in C where there is one; too deep ones are refused."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:  # the other parser may read it, and gives clearer reasons
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    layer = {} if root is None else {id(root): root}
    for _ in range(DEEPEST):
        parts = [part for node in layer.values() for part in _parts(node)]
        layer = {id(part): part for part in parts}  # what several aliases stand for counts once
    if layer:
        raise ConfigError(f"more than {DEEPEST} groups or lists inside each other, and options have five")
    return root


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes right inside another."""
    if isinstance(node, yaml.MappingNode):
        yield from (part for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _written(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in a file for each dotted key before YAML makes a number, a date or a boolean of it."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _written(value, f"{key}.{name.value}" if key else name.value)
    elif isinstance(node, yaml.SequenceNode):
        yield key, [dict(_written(member, key)).get(key) for member in node.value]
    elif isinstance(node, yaml.ScalarNode):
        yield key, None if node.tag.endswith(":null") else node.value


def _lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{name}.")


def _hint(path: Path) -> str:
    """Which file of a folder may be meant, in words; "" if there is nothing to propose."""
    if os.path.isdir(path):  # asks of any text, where a path of 300 letters or with a NUL is an error
        files = sorted(path.glob("*.y*ml"))
        return f"{path}: is a folder, not a file." + (f" Give one of those in it, e.g. {files[0]}." if files else "")
    if os.path.exists(path) or "\0" in str(path):
        return ""
    siblings = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return f"{path}: no such file.{suggest(path.name, siblings)} Looked for {path.resolve()}."


def _syntax(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    if isinstance(error, ConfigError):
        return f"{place}: {error}."
    return f"{place}: this is not YAML: {_why(error)}. Look at this line and the one above it."


def _why(error: Exception) -> str:
    """Why YAML cannot be read, in one line."""
    if isinstance(error, RecursionError):
        return f"more than {DEEPEST} groups or lists inside each other"
    if "digits" in str(error) and isinstance(error, ValueError):
        return "an integer of more than 4,300 digits"
    return getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
