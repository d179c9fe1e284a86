"""From files, flags and overrides to one checked RunConfig; every problem is found before anything is built.

Later wins: schema defaults, `include`s in their order, the file, further files, flags, `key=value` overrides. The
layers are merged as plain values and enter the typed schema once, at the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genrl.config.checks import Problem, contradictions, option, unencodable
from genrl.config.layers import SLOTS, Layer, Tree, combine, read_file, read_override
from genrl.config.schema import RunConfig
from genrl.config.typed import to_typed
from genrl.errors import ConfigError, GenRLError, shown
from genrl.files import write_text
from genrl.options import as_written
from genrl.registry import Registry, load_plugin

Registries = Mapping[str, Callable[[], Registry[Any]]]
"""Kind of component (objective, layout, baseline, reward, sid) -> how to get its registry, called after
everything else has been checked."""
FLAGS = {"stage": "stages", "plugin": "plugins"}
"""Flags whose option has another name."""


def load_config(
    files: Sequence[str | Path] = (),
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    registries: Registries | None = None,
    *,
    imports: bool = True,
) -> RunConfig:
    """Compose a configuration, check it and import its plug-ins.

    Args:
        files: YAML files, later ones over earlier ones.
        flags: values of command-line flags by name; None was not given. Plug-ins are added to those of the files.
        overrides: `key=value` texts.
        registries: where components are looked up and their options completed; without them neither is checked.
        imports: import the plug-ins; without, nothing that the configuration names is run.

    Raises:
        ConfigError: with all problems. Components are looked up only if everything else is in order, so that a
            misspelt key is reported without importing torch.

    Example:
        >>> load_config(overrides=["rl.max_steps=3", "objective=gbpo"]).objective
        {'name': 'gbpo'}
    """
    layers, problems = _layers(files, flags or {}, overrides)
    written = {key: text for layer in layers for key, text in layer.written.items()}
    defaults = RunConfig()
    components = {key: getattr(defaults, key) for key in (*SLOTS, "rewards")}  # other defaults stay in the schema
    config, wrong = to_typed(combine(layers, components), written)
    spoilt = {key for problem in wrong for key in problem.keys}
    found = (*unencodable(config), *contradictions(config))
    wrong += [problem for problem in found if spoilt.isdisjoint(problem.keys)]
    problems += [_located(problem, layers) for problem in wrong]
    if problems:
        raise ConfigError(_report(problems, "Components and their options are checked next." if registries else ""))
    wrong = list(_plugins(config)) if imports else []
    if registries is not None:
        wrong += _components(config, registries, written)
    if wrong:
        raise ConfigError(_report([_located(problem, layers) for problem in wrong]))
    return config


def save_config(config: RunConfig, path: Path) -> None:
    """Write the complete configuration as YAML; the file appears whole or not at all.

    Loading it gives an equal configuration: a default reward that was dropped is written as null.
    """
    values = asdict(config)
    values["rewards"] = {**dict.fromkeys(RunConfig().rewards), **config.rewards}
    text = OmegaConf.to_yaml(OmegaConf.create(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def experiment_folder(config: RunConfig) -> Path:
    """The folder that runs to be compared share: `<output>/<experiment>`, `~` made a home."""
    return Path(config.output).expanduser() / config.experiment


def run_folder(config: RunConfig) -> Path:
    """The folder of a run: `<name, or that of objective or baseline>-s<seed>` in that of its experiment."""
    component = config.baseline if config.stages == ["baseline"] else config.objective
    return experiment_folder(config) / f"{config.name or component['name']}-s{config.seed}"


def _layers(
    files: Sequence[str | Path], flags: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[list[Layer], list[str]]:
    layers: list[Layer] = []
    problems: list[str] = []
    for file in files:
        read, wrong = read_file(Path(file))
        layers += read
        problems += wrong
    for flag, value in flags.items():
        if value is None:
            continue
        if flag == "plugin":
            before = combine(layers, {}).get("plugins")
            value = [*(before if isinstance(before, list) else []), *value]
        values = {FLAGS.get(flag, flag): value}
        layers.append(Layer(f"--{flag}", values, written=values))
    given = []
    for text in overrides:
        try:
            given.append(read_override(text))
        except ConfigError as error:
            problems.append(str(error))
    naming = {*SLOTS, *(f"{slot}.name" for slot in SLOTS)}  # come first: an option may stand before its component
    return [*layers, *sorted(given, key=lambda layer: naming.isdisjoint(layer.written))], problems


def _plugins(config: RunConfig) -> Iterator[Problem]:
    for reference in config.plugins:
        try:
            load_plugin(reference)
        except ConfigError as error:
            yield Problem(("plugins",), str(error))


def _components(config: RunConfig, registries: Registries, written: Tree) -> Iterator[Problem]:
    """Check components, and write their complete options into the configuration.

    A baseline is looked up only where it is run.
    """
    for slot in SLOTS:
        if slot == "baseline" and "baseline" not in config.stages:
            continue
        options = dict(getattr(config, slot))
        name = options.pop("name")
        wrong, canonical, complete = _component(slot, name, options, registries[slot](), written)
        yield from wrong
        setattr(config, slot, {"name": canonical, **complete})
        if not wrong:
            yield from _advised(config, registries[slot]().entry(name).advice, written)
    for name, options in list(config.rewards.items()):
        own = {key: value for key, value in options.items() if key != "reward"}
        kind = {"reward": str(options["reward"])} if options.get("reward") else {}
        known = kind.get("reward", name)
        wrong, canonical, complete = _component(f"rewards.{name}", known, own, registries["reward"](), written)
        yield from wrong
        config.rewards[name] = kind | complete


def _advised(config: RunConfig, advice: Mapping[str, Any], written: Tree) -> Iterator[Problem]:
    """Take a component's advice about other options, unless one of them is given."""
    if advice and written.keys().isdisjoint(advice):
        for key, value in advice.items():
            section, _, name = key.rpartition(".")
            setattr(option(config, section), name, value)
        yield from contradictions(config)


def _component(
    key: str, name: str, options: Tree, registry: Registry[Any], written: Tree
) -> tuple[list[Problem], str, Tree]:
    """Return what is wrong with a component, its canonical name and its complete options."""
    try:
        entry = registry.entry(name)
        if entry.config is not None:
            options = as_written(entry.config, options, written, f"{key}.")
        wrong = [Problem((f"{key}.{option}", key), reason) for option, reason in registry.problems(name, options)]
        if wrong:
            return wrong, entry.name, options
        filled = registry.options(name, options)
    except GenRLError as error:
        return [Problem((key,), str(error))], name, options
    return [], entry.name, asdict(filled) if is_dataclass(filled) and not isinstance(filled, type) else {}


def _located(problem: Problem, layers: Sequence[Layer]) -> str:
    """Put the place and the value before what is wrong: the last layer that set one of the keys."""
    first = problem.keys[0]
    reason = problem.reason if problem.reason.endswith(("?", ".")) else f"{problem.reason}."
    for key in problem.keys:
        for layer in reversed(layers):
            where, value = layer.where(key), layer.get(first)
            if where is not None:
                return f"{where}: {first}{'' if value is None else f' = {shown(value)}'}: {reason}"
    return f"default: {first}: {reason}"


def _report(problems: Sequence[str], hint: str = "") -> str:
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0]
    lines = [f"{len(unique)} problems in the configuration:", *(f"  {problem}" for problem in unique)]
    return "\n".join([*lines, hint] if hint else lines)
