"""What a finished run holds, file by file with its SHA-256, so that damage is told instead of becoming a number."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from genrl.errors import CheckpointError
from genrl.files import as_json, file_hash, flush, read_json, write_json

MANIFEST, METRICS = "manifest.json", "metrics.json"
LIVELY = (".", "events.out.", "log.txt", "resume", "evaluation-", MANIFEST, METRICS)
"""How names begin of what goes on changing, or is known in another way, when a run is finished."""


def seal(folder: Path, metrics: dict[str, Any]) -> None:
    """Write down the content of every file of a run or a stage, and then the file that says it is finished.

    All of them are on the disk before the manifest is, and the manifest before `metrics.json`: whenever a process or
    the power ends, the folder is whole and finished or goes on where it was.

    Args:
        folder: holds all that numbers depend on.
        metrics: what `metrics.json` is to hold.
    """
    files = _files(folder)
    for place in (*files, *{path.parent for path in files}):
        flush(place)
    held = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
    write_json(folder / MANIFEST, {**held, METRICS: hashlib.sha256(as_json(metrics).encode()).hexdigest()})
    write_json(folder / METRICS, metrics)


def check(folder: Path) -> dict[str, str]:
    """Refuse a run or a stage whose files are not those that it was finished with.

    Returns:
        File -> SHA-256.

    Raises:
        CheckpointError: naming every file that is missing or has another content.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}, so nothing says that its files are those it was finished with: it is of an "
            f"earlier version, or was copied in part. Copy it whole, or remove the folder and run it again."
        )
    held = read_json(path)
    if not isinstance(held, dict) or METRICS not in held or not all(isinstance(value, str) for value in held.values()):
        raise CheckpointError(f"{path} is damaged: it is no list of files. Remove the folder and run it again.")
    wrong = [_wrong(folder, name, digest) for name, digest in held.items()]
    if any(wrong):
        raise CheckpointError(
            f"{folder} is damaged: {'; '.join(filter(None, wrong))}. Its numbers would not be those of the run. Bring "
            f"the files back from a copy, or remove the folder and run it again."
        )
    return held


def _wrong(folder: Path, name: str, digest: str) -> str:
    """What is wrong with a file, "" if nothing is."""
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        return f"{name!r} lies outside the folder"
    if not path.is_file():
        return f"{name} is missing"
    return "" if file_hash(path) == digest else f"{name} has another content than when the run was finished"


def _files(folder: Path) -> list[Path]:
    """Regular files of a folder and those below it that do not change any more, by name."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(LIVELY) for part in parts):
            found.append(path)
    return found
