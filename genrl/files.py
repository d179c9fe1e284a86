"""Files: written in one move, held against other processes, known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.errors import CheckpointError, DataError, unwritable
from genrl.given import parsed, reason
from genrl.terminal import safe

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
"""Ends of the names in a model folder that say what the model is: weights, configuration, tokenizer, its own code."""

AGAIN = "Bring it back from a copy, or remove {} and give the command that made it again"
"""What to do about weights: a folder that lacks a file of its manifest is refused, one that is not there is made."""
FRESH = 2 * 10**9
"""Nanoseconds within which a file may be written twice and have one time."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` in one move once it is whole and on the disk.

    Readers see the old file or the new one, never half of it; after an error the old one stays.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had our number, or a link
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that their owner alone can read
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Give a file that is on the disk another name in its file system, replacing what has it, so that it lasts."""
    os.replace(source, target)
    flush(target.parent)


def flush(place: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path, names: str = "**/.*.*") -> None:
    """Remove what killed processes have left of files that they were writing (`atomic`).

    Args:
        folder: held against all who write files of these names (`locked`), on this machine or another.
        names: pattern of what they were writing into; by default everything, in all folders below too.
    """
    for path in folder.glob(names):
        number = path.name.split(".")[1]
        if number.isdecimal() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(number: int) -> bool:
    """Whether another process of this machine has that number."""
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return number != os.getpid()


def refuse_links(folder: Path) -> None:
    """Refuse a folder that has links in it or below: what is written into it would change files elsewhere.

    Raises:
        CheckpointError: naming them.
    """
    found = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_symlink()]
    if found:
        raise CheckpointError(
            f"{folder} holds links, which are not followed: {', '.join(found)}. What is written here would change "
            f"files elsewhere. Put the files themselves there, or remove the links."
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one move."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text in one move."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Write JSON in one move."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:  # noqa: ANN401
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=False, default=str) + "\n"


@contextmanager
def kept_if_writable(what: str, folder: Path) -> Iterator[None]:
    """Write what is only kept within the block; a folder that cannot be written to is warned of."""
    try:
        yield
    except OSError as error:
        if unwritable(error) != "read-only":
            raise
        warnings.warn(f"{what} are not kept: {folder}: {error.strerror}.", stacklevel=3)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read JSON, or raise a CheckpointError if the file is missing or damaged, or cannot be read."""
    try:
        return parsed(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. Is this a finished run folder?") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)}). Mend that, or bring a copy.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Remove the folder and run again.") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of all files in a folder with their names; a DataError if it cannot be read."""
    return _hash(Path(path).expanduser(), None)


def model_hash(folder: str | Path) -> str:
    """SHA-256 of what a model folder holds of weights, configuration, tokenizer and code."""
    return _hash(Path(folder).expanduser(), MODEL_FILES)


def _hash(place: Path, ends: tuple[str, ...] | None) -> str:
    try:
        if not place.is_dir():
            about = place.stat()
            fresh = time.time_ns() - about.st_mtime_ns < FRESH  # it may change again without another time
            return (_content.__wrapped__ if fresh else _content)(place, about.st_size, about.st_mtime_ns)
        files = sorted(one for one in place.rglob("*") if one.is_file() and (ends is None or one.suffix in ends))
        listing = "".join(f"{one.relative_to(place)} {_hash(one, None)}\n" for one in files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}). Give a file that is there.") from error


@cache
def _content(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; within a process, one of the same size and time is not read again."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def key_of(*parts: object) -> str:
    """Eight hex digits that change with anything a stage depends on."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:8]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; waits, with a notice, while another one trains there.

    Raises:
        CheckpointError: if its lock is a link, which must not be opened for writing.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ".lock").is_symlink():
        raise CheckpointError(f"{folder / '.lock'} is a link, which is not followed. Remove it.")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting: another process is working in {safe(folder)}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process holds a folder at this moment (`locked`); changes nothing."""
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    if not path.is_file() or path.is_symlink():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write weights as safetensors with metadata in their header, replacing the file in one move."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file(state, temporary, metadata=metadata)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read trained weights, or raise a CheckpointError if the file is missing, truncated or no safetensors file."""
    from safetensors.torch import load_file

    with _checkpoint(path):
        return load_file(path)


def weights_hash(path: Path) -> str:
    """SHA-256 of the weights in a safetensors file, whatever else its header says of them; "" if it holds none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, path.stat().st_size)))
            tensors = {name: about for name, about in header.items() if name != "__metadata__"}
            digest.update(json.dumps(tensors, sort_keys=True).encode())
            while part := stream.read(1 << 20):
                digest.update(part)
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """Read what the header of trained weights says of them; empty if it says nothing. Errors as in `read_weights`."""
    from safetensors import safe_open

    with _checkpoint(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextmanager
def _checkpoint(path: Path) -> Iterator[None]:
    """Name a file of weights that cannot be read."""
    from safetensors import SafetensorError

    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. {AGAIN.format(path.parent)}, or give another folder.")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}). {AGAIN.format(path.parent)}.") from error
