"""Whose a run folder is: made by one configuration, finished or not, and never overwritten by another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from genrl.config.load import save_config
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.training import report
from genrl.training.folder import UNIMPORTANT, is_main_process, read_json, versions, write_json


def is_finished(folder: Path, config: RunConfig, resume: bool) -> bool:
    """Whether the run folder holds this very run, finished; writes nothing.

    Raises:
        ConfigError: if it holds another configuration, or an unfinished run that is not to be resumed.
    """
    saved = folder / "config.yaml"
    if not is_main_process() or not saved.exists():
        return False
    changed = differences(saved, config)
    if changed:
        raise ConfigError(
            f"{folder} already holds another configuration; it differs in {', '.join(changed)}. Nothing was "
            f"written. Choose another experiment=NAME or seed=N, or remove the folder."
        )
    if (folder / "metrics.json").exists():
        return True
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run of this configuration. Add --resume to go on with it, or remove the "
            f"folder."
        )
    return False


def show_finished(folder: Path, console: Console) -> Path:
    """Show the tables of a run that need not be made again."""
    console.print(f"[bold]{folder} is finished already.[/] Remove it, or change experiment or seed, to run it again.")
    report.show(console, read_json(folder / "metrics.json"))
    return folder


def claim(folder: Path, config: RunConfig, command: str) -> None:
    """Make an empty run folder ours; config.yaml comes last, so that a folder with it is whole."""
    saved = folder / "config.yaml"
    if saved.exists():
        return
    write_json(folder / "versions.json", versions())
    (folder / "command.txt").write_text(
        f"{command or 'started from Python'}\n# the same run again, elsewhere:\n"
        f"python -m genrl fit --config {saved} output=runs-again\n"
    )
    save_config(config, saved)


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
