"""Whose a run folder is: made by one configuration, finished or not, and never overwritten by another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genrl.config.load import save_config
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.files import file_hash, model_hash, read_json, write_json
from genrl.runs.record import versions
from genrl.sid import sources
from genrl.training.fitting import is_first

READ = ("data.interactions", "data.items", "activate.path")
"""Options that name files which a run learns from, besides those of the SID table."""
UNIMPORTANT = ("output", "trainer.threads", "trainer.log_every")
"""Options that do not make another run."""


def is_finished(folder: Path, config: RunConfig, resume: bool) -> bool:
    """Whether the run folder holds this very run, finished; writes nothing.

    Raises:
        ConfigError: if it holds another configuration, was made from files that have other contents now, or holds an
            unfinished run that is not to be resumed.
    """
    saved = folder / "config.yaml"
    if not is_first() or not saved.exists():
        return False
    changed = differences(saved, config)
    if changed:
        raise ConfigError(
            f"{folder} already holds another configuration; it differs in {', '.join(changed)}. Nothing was "
            f"written. Choose another experiment=NAME or seed=N, or remove the folder."
        )
    inputs = folder / "inputs.json"
    before = read_json(inputs) if inputs.exists() else {}
    now = input_files(config) if before else {}
    other = [f"{name} ({path})" for name, (path, digest) in now.items() if before.get(name, digest) != digest]
    if other:
        raise ConfigError(
            f"{folder} was begun when {', '.join(other)} had another content. Nothing was written. Choose another "
            f"experiment=NAME or name=NAME, remove the folder, or bring the old content back."
        )
    if (folder / "metrics.json").exists():
        return True
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run of this configuration. Add --resume to go on with it, or remove the "
            f"folder."
        )
    return False


def claim(folder: Path, config: RunConfig, command: str) -> None:
    """Make an empty run folder ours; config.yaml comes last, so that a folder with it is whole."""
    saved = folder / "config.yaml"
    if saved.exists():
        return
    write_json(folder / "versions.json", versions())
    write_json(folder / "inputs.json", {name: digest for name, (_, digest) in input_files(config).items()})
    (folder / "command.txt").write_text(
        f"{command or 'started from Python'}\n# the same run again, elsewhere:\n"
        f"python -m genrl fit --config {saved} output=runs-again\n"
    )
    save_config(config, saved)


def input_files(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Option -> path and SHA-256 of each file or folder that a run depends on, as far as it is on this disk."""
    options = _flat(asdict(config))
    paths = {name: Path(options[name]) for name in READ if options.get(name)} | sources(config.sid)
    paths |= {f"plugins {module}": source for module in config.plugins for source in [_source(module)] if source}
    found = {name: path.expanduser() for name, path in paths.items()}
    digests = {name: (str(path), file_hash(path)) for name, path in found.items() if path.exists()}
    if config.model.name != "tiny" and Path(config.model.name).is_dir():
        digests["model.name"] = (config.model.name, model_hash(config.model.name))
    return digests


def _source(module: str) -> Path | None:
    """The file or folder of a plug-in, given as a module or a .py file."""
    if module.endswith(".py"):
        return Path(module)
    try:
        found = find_spec(module)
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
    now = input_files(config)
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


def differences(saved: Path, config: RunConfig) -> list[str]:
    """Dotted names of what differs between a saved configuration and this one.

    An option that the saved one lacks, being of an earlier version, stands at its default there.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(saved))
    except Exception as error:
        raise CheckpointError(
            f"{saved} is damaged ({type(error).__name__}). Remove the folder and run again."
        ) from error
    now = OmegaConf.to_container(OmegaConf.create(asdict(config)))
    before, after, default = _flat(values), _flat(now), _flat(asdict(RunConfig()))
    names = sorted(before.keys() | after.keys())
    changed = (name for name in names if before.get(name, default.get(name)) != after.get(name))
    return [name for name in changed if name not in UNIMPORTANT]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 (nested plain values)
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return {name: value for name, value in found.items() if value is not None}
