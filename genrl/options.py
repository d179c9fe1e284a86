"""Options of the configuration and of components: dataclass fields whose bounds stand beside their default."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, field, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genrl.errors import wrong_value

Values = Mapping[str, Any]


def option(
    default: Any = MISSING,  # noqa: ANN401 (of the field's own type)
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    length: int | None = None,
    choices: tuple[str, ...] = (),
    says: str = "",
) -> Any:  # noqa: ANN401 (stands where the default would)
    """A dataclass field with bounds; a subclass that gives it another default keeps them.

    Numbers are always finite, null is within any bounds, and those of a list hold for each of its members.

    Args:
        default: value when nothing is given; without it the option must be given.
        ge: least value.
        gt: value that it must be above.
        le: largest value.
        lt: value that it must be below.
        length: members of a list; at least one where lists have bounds but no length.
        choices: texts to choose from, where the type is not a Literal.
        says: the sentence for whatever is out of bounds, instead of one made from them; of an option that must be
            given, what to give.

    Example:
        >>> from dataclasses import make_dataclass
        >>> Options = make_dataclass("Options", [("rate", float, option(0.5, ge=0, lt=1))])
        >>> list(out_of_bounds(Options, {"rate": 1.0}))
        [('rate', 'must be at least 0 and below 1')]
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "length": length, "choices": choices, "says": says}
    metadata = {name: bound for name, bound in bounds.items() if bound not in (None, (), "")}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def seed_option(default: int) -> Any:  # noqa: ANN401
    """A seed: from 0 to 2^32 - 1, which every library takes, the same bounds wherever one is asked for."""
    return option(default, ge=0, le=2**32 - 1)


@cache
def hints_of(schema: Any) -> Mapping[str, Any]:  # noqa: ANN401 (a dataclass)
    """Types of the options of a dataclass by name."""
    return get_type_hints(schema)


def node_of(schema: Any) -> DictConfig:  # noqa: ANN401 (a dataclass)
    """A node of OmegaConf with the defaults of a dataclass."""
    return deepcopy(_made(schema))


@cache
def _made(schema: Any) -> DictConfig:  # noqa: ANN401
    return OmegaConf.structured(schema)  # takes several times as long as a copy of what it gives


def out_of_bounds(schema: Any, values: Values, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield the dotted name of each well-typed value of a dataclass that is out of bounds, and the bounds in words."""
    for name, hint in hints_of(schema).items():
        value = values.get(name)
        if is_dataclass(hint):
            inner = value if isinstance(value, Mapping) else vars(value)
            yield from out_of_bounds(hint, inner, f"{prefix}{name}.")
        elif reason := _reason(value, bounds(schema, name)):
            yield f"{prefix}{name}", reason


def fill(
    node: DictConfig,
    schema: Any,  # noqa: ANN401 (a dataclass)
    values: Values,
    unknown: Callable[[str, list[str]], str],
    *,
    defaults: bool = False,
    prefix: str = "",
) -> Iterator[tuple[str, Any, str]]:
    """Write values into a node made from a schema; yield dotted name, value and reason of each that does not fit.

    Args:
        node: keeps what it holds where a value does not fit.
        schema: the dataclass.
        values: plain values by name.
        unknown: says of a dotted name that it is not among the names of its group.
        defaults: whether a reason tells the default.
        prefix: what stands before each name.
    """
    hints = hints_of(schema)
    group: Any = OmegaConf.select(node, prefix[:-1]) if prefix else node
    OmegaConf.set_readonly(group, False)  # of a frozen dataclass
    for name, value in values.items():
        key, hint = f"{prefix}{name}", hints.get(name)
        if hint is None:
            yield key, value, unknown(key, list(hints))
        elif not is_dataclass(hint):
            try:
                OmegaConf.update(group, name, value, merge=False)
            except (OmegaConfBaseException, TypeError, OverflowError) as error:
                yield key, value, wrong_value(value, hint, error, plain(node, key) if defaults else MISSING)
        elif isinstance(value, Mapping):
            yield from fill(node, hint, value, unknown, defaults=defaults, prefix=f"{key}.")
        elif value is not None:  # an empty section of a file is null: nothing to set
            first = next(iter(get_type_hints(hint)))
            yield key, value, f"is a group of options, not a value. Set one of them, e.g. {key}.{first}"


def plain(node: DictConfig, key: str) -> Any:  # noqa: ANN401
    """The value of a dotted key without types of OmegaConf."""
    value = OmegaConf.select(node, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def as_written(schema: Any, values: Values, written: Values, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Values of a dataclass with those of text as they were written: `001`, `12:30:45` and `no` stay what they are.

    `values` are as YAML reads them; `written` has the scalar or list of scalars of each dotted name, null as None.
    """
    hints = hints_of(schema)
    found = dict(values)
    for name, value in values.items():
        hint, text = hints.get(name), written.get(f"{prefix}{name}")
        if "${" in str(text):  # stands for the value of another option or of the environment
            continue
        if is_dataclass(hint) and isinstance(value, Mapping):
            found[name] = as_written(hint, value, written, f"{prefix}{name}.")
        elif (isinstance(text, str) and _is_text(hint)) or (isinstance(text, list) and _is_texts(hint, text)):
            found[name] = text
    return found


def _is_text(hint: Any) -> bool:  # noqa: ANN401
    """Whether a type takes text and no number.

    Example:
        >>> [_is_text(hint) for hint in (str, str | None, Literal["on", "off"], list[str], int | str, float)]
        [True, True, True, False, False, False]
    """
    if get_origin(hint) is Literal:
        return all(isinstance(choice, str) for choice in get_args(hint))
    kinds = set(get_args(hint)) or {hint}
    return str in kinds and not kinds & {int, float, bool} and get_origin(hint) not in (list, dict)


def _is_texts(hint: Any, written: list[Any]) -> bool:  # noqa: ANN401
    return list[str] in (hint, *get_args(hint)) and all(isinstance(text, str) for text in written)


def bounds(schema: type, name: str) -> Values:
    """Bounds of the option `name`: of the first class in the order of inheritance that gives any."""
    given = (getattr(kind, "__dataclass_fields__", {}).get(name) for kind in schema.__mro__)
    return next((each.metadata for each in given if each is not None and each.metadata), {})


def _reason(value: Any, bounds: Values) -> str:  # noqa: ANN401
    """What is wrong with a value, in words; empty if nothing is."""
    members = value if isinstance(value, list | tuple) else [value]
    numbers = [member for member in members if isinstance(member, int | float) and not isinstance(member, bool)]
    if bounds and isinstance(value, list | tuple) and len(value) != bounds.get("length", len(value) or 1):
        return bounds.get("says") or _range(bounds)
    chosen = "choices" not in bounds or value is None or value in bounds["choices"]
    if not all(_within(number, bounds) for number in numbers) or not chosen:
        return bounds.get("says") or _range(bounds)
    if any(isinstance(number, int) and abs(number) >= 2**63 for number in numbers):
        return "must be an integer of 64 bits, below 2^63"
    return "" if all(math.isfinite(number) for number in numbers) else "must be a finite number"


def _within(number: float, bounds: Values) -> bool:
    """Whether a number is within bounds; not a number is within none."""
    holds = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    return all(compare(number, bounds[name]) for name, compare in holds.items() if name in bounds)


def _range(bounds: Values) -> str:
    """Bounds in words.

    Example:
        >>> _range({"ge": 0, "le": 1}), _range({"choices": ("a", "b")})
        ('must be from 0 to 1', 'must be one of a, b')
    """
    if "choices" in bounds:
        return f"must be one of {', '.join(bounds['choices'])}"
    if {"ge", "le"} <= bounds.keys():
        return f"must be from {bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return "must be " + " and ".join(f"{word} {bounds[name]}" for name, word in words.items() if name in bounds)
