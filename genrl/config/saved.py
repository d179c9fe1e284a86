"""The configuration of a run folder, and whether the code that the folder names may run.

A folder that somebody else has made is data. The plug-ins that its config.yaml names are imported only where the user
has said so (`trusting`), or has had the very same code imported already by naming it (`registry.load_plugin`). What is
imported then is the copy in the folder, known by its hash.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from genrl.config.load import load_config
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, ConfigError, UntrustedError
from genrl.files import file_hash, read_json, write_bytes, write_json
from genrl.registry import imported, load_plugin

COPIES, INPUTS = "plugins", "inputs.json"
_trusting: ContextVar[bool] = ContextVar("trusting", default=False)
REMEDY = "Say --trust (in Python trust=True) if you trust who made the folder and have read it: code has your rights"


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Within the block the code of run folders may run, if `trust`; otherwise as around it."""
    before = _trusting.set(trust or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(before)


def read_saved(folder: Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run folder under overrides, with its plug-ins imported.

    Raises:
        UntrustedError: naming plug-ins that are neither trusted nor imported already.
        CheckpointError: if a copy of a plug-in is missing or is not what was copied.
    """
    saved = folder / "config.yaml"
    own = load_config([saved], imports=False).plugins
    config = load_config([saved], flags, overrides, imports=False)
    held = _hashes(folder)
    waiting = [name for name in own if not imported(name, held.get(name))]
    if waiting and not _trusting.get():
        raise UntrustedError(_refusal(folder, waiting, held))
    for name in own:
        if name in waiting or not imported(name, held.get(name), latest=True):
            load_plugin(str(_copy(folder, name, held)) if name.endswith(".py") else name)
    for name in config.plugins:
        if name not in own:  # the overrides are the user's
            load_plugin(name)
    return config


def refuse_remote_code(folder: Path, config: RunConfig, overrides: Sequence[str]) -> None:
    """Refuse to run the code of a base model because a run folder says so.

    Raises:
        UntrustedError: unless the folder is trusted or one of the overrides asks for that code.
    """
    asked = any(text.partition("=")[0] == "model.trust_remote_code" for text in overrides)
    if config.model.trust_remote_code and not asked and not _trusting.get():
        raise UntrustedError(
            f"{folder} asks to run the code that comes with its base model {config.model.name} "
            f"(model.trust_remote_code=true in its config.yaml). {REMEDY}."
        )


def keep_plugins(folder: Path, config: RunConfig, hashes: Mapping[str, str]) -> None:
    """Copy the plug-in files of a configuration into its run folder.

    Args:
        folder: of the run.
        config: as the user has given it.
        hashes: `plugins NAME` -> SHA-256 of what is to be copied.

    Raises:
        ConfigError: if a file is not what it was when it was imported.
    """
    for name in config.plugins:
        digest = hashes.get(f"plugins {name}")
        if not name.endswith(".py") or digest is None:
            continue
        target = _keep(folder, name, digest, Path(name).expanduser())
        if file_hash(target) != digest or (imported(name, None) and not imported(name, digest, latest=True)):
            raise ConfigError(f"plugin {name!r} was changed since it was imported. Give the same command again.")


def copy_plugins(source: Path, folder: Path) -> None:
    """Carry the copies of plug-ins from one run folder into another that has the same configuration."""
    held = _hashes(source)
    for name in held:
        if name.endswith(".py"):
            _keep(folder, name, held[name], _copy(source, name, held))
    if held:
        write_json(folder / INPUTS, {f"plugins {name}": digest for name, digest in held.items()})


def _keep(folder: Path, name: str, digest: str, source: Path) -> Path:
    """Write the copy of a plug-in."""
    content, target = source.read_bytes(), _place(folder, name, digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
    return target


def _hashes(folder: Path) -> dict[str, str]:
    """Plug-in -> SHA-256, as a run has noted them."""
    path = folder / INPUTS
    noted = read_json(path) if path.is_file() else {}
    if not isinstance(noted, dict) or not all(isinstance(value, str) for value in noted.values()):
        raise CheckpointError(f"{path} is damaged: it is no list of files. Remove the folder and run it again.")
    start = "plugins "
    return {name.removeprefix(start): value for name, value in noted.items() if name.startswith(start)}


def _place(folder: Path, name: str, digest: str) -> Path:
    """Where the copy of a plug-in lies: under its own name, which its components are known by, and its content."""
    return folder / COPIES / digest[:16] / Path(name).name


def _copy(folder: Path, name: str, held: Mapping[str, str]) -> Path:
    """The copy of a plug-in, which is what was copied."""
    digest = held.get(name, "")
    path = _place(folder, name, digest)
    if not re.fullmatch("[0-9a-f]{64}", digest) or not path.is_file():
        raise CheckpointError(
            f"{folder} holds no copy of its plug-in {name}: it is of an earlier version, or was copied in part. Copy "
            f"it whole, or name the same file: --plugin {name}."
        )
    if not path.resolve().is_relative_to(folder.resolve()) or file_hash(path) != digest:
        raise CheckpointError(
            f"{path} is not the plug-in that {folder} was made with. Bring it back from a copy, or remove the folder "
            f"and run it again."
        )
    return path


def _refusal(folder: Path, waiting: Sequence[str], held: Mapping[str, str]) -> str:
    """What is refused, and what to write."""
    files = []
    for name in waiting:
        place = _place(folder, name, held[name]) if name in held and name.endswith(".py") else None
        where = f"its copy is {place}" if place is not None and place.is_file() else "no copy of it is there"
        other = ", another content than the file of that name you gave" if imported(name, None) else ""
        files.append(f"{name} ({where}{other})" if name.endswith(".py") else f"{name} (an installed module)")
    flags = " ".join(f"--plugin {name}" for name in waiting)
    return (
        f"{folder} names code that would be imported: {', '.join(files)}. {REMEDY}. If it is your own, naming the same "
        f"content is enough: {flags}."
    )
