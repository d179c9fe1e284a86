"""The files that a run depends on, known by their content."""

from collections.abc import Collection
from dataclasses import asdict
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError
from genrl.files import file_hash, model_hash, read_json
from genrl.recommenders.base import WEIGHTS
from genrl.sid import sources

READ = ("data.interactions", "data.items", "activate.path", "prompt.template", "prompt.profile")
"""Options that name files which a run learns from, besides those of the SID table."""


def input_files(config: RunConfig, names: Collection[str] | None = None) -> dict[str, tuple[str, str]]:
    """Option -> path and SHA-256 of each file or folder that a run depends on, as far as it is on this disk.

    With `names`, of these options alone.
    """
    options = flat(asdict(config))
    paths = {name: Path(options[name]) for name in READ if options.get(name)} | sources(config.sid) | plugins(config)
    if not config.model.from_scratch and Path(config.model.name).expanduser().is_dir():
        paths["model.name"] = Path(config.model.name)
    guides = {"prior.run": config.prior.run, "teacher.run": config.teacher.run}
    paths |= {name: Path(run) / WEIGHTS for name, run in guides.items() if run}
    found = {name: path.expanduser() for name, path in paths.items() if names is None or name in names}
    return {
        name: (str(path), (model_hash if name == "model.name" else file_hash)(path))
        for name, path in found.items()
        if path.exists()
    }


def modules(config: RunConfig) -> list[str]:
    """`plugins NAME` of each plug-in that is an installed module: of files, a run has copies of its own."""
    return [f"plugins {name}" for name in config.plugins if not name.endswith(".py")]


def plugins(config: RunConfig) -> dict[str, Path]:
    """`plugins NAME` -> file or folder of each plug-in of a configuration, as far as it is found."""
    found = {f"plugins {module}": _source(module) for module in config.plugins}
    return {name: path for name, path in found.items() if path is not None}


def _source(module: str) -> Path | None:
    """The file or folder of a plug-in, given as a module or a .py file; nothing is imported to find it."""
    if module.endswith(".py"):
        return Path(module)
    first, *parts = module.split(".")
    try:
        found = find_spec(first)
        for part in parts:  # `find_spec` of a dotted name would import its parents
            inside = None if found is None else found.submodule_search_locations
            first = f"{first}.{part}"
            found = None if inside is None else PathFinder.find_spec(first, inside)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent if found.submodule_search_locations else Path(found.origin)


def check_inputs(folder: Path, config: RunConfig, names: Collection[str]) -> None:
    """Refuse to use a finished run beside other data or base weights than it was made with.

    Args:
        folder: of the run.
        config: with the paths of today.
        names: options whose content must be the same.

    Raises:
        CheckpointError: naming everything whose content is another one now, or is missing.
    """
    path = folder / "inputs.json"
    before = read_json(path) if path.exists() else {}
    now = input_files(config, names)
    changed = [
        f"{name} ({now[name][0]}) has another content now" if name in now else f"{name} is not there any more"
        for name, digest in before.items()
        if name in names and (name not in now or now[name][1] != digest)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} was made with other inputs: {'; '.join(changed)}. Its numbers would not be those of this run. "
            f"Bring the old content back, or train a run on the new one with another experiment=NAME; to score the run "
            f"on other rows of the same items, name their file (data.interactions=FILE); a model folder that has moved "
            f"is named with model.name=FOLDER."
        )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 (nested plain values)
    """Dotted name -> value of what is set in nested options."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return {name: value for name, value in found.items() if value is not None}
