"""The run folder: who owns it, what it holds, and how nothing in it is lost or half-written."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from genrl.errors import CheckpointError, DataError

PACKAGES = (
    "genrl",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "omegaconf",
    "datasets",
    "bitsandbytes",
)
UNIMPORTANT = ("output", "trainer.threads", "trainer.log_every")
"""Options that do not make another run."""


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Write JSON in one move: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")
    os.replace(temporary, path)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of all files in a folder with their names.

    Raises:
        DataError: if it cannot be read.
    """
    place = Path(path).expanduser()
    try:
        if not place.is_dir():
            digest = hashlib.sha256()
            with place.open("rb") as stream:
                while part := stream.read(1 << 20):
                    digest.update(part)
            return digest.hexdigest()
        files = sorted(one for one in place.rglob("*") if one.is_file())
        listing = "".join(f"{one.relative_to(place)} {file_hash(one)}\n" for one in files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a file that is there.") from error


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read JSON.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. Is this a finished run folder?") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Remove the folder and run again.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read trained weights.

    Raises:
        CheckpointError: if the file is missing, truncated or no safetensors file.
    """
    with _checkpoint(path):
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Read what the header of trained weights says of them; empty if it says nothing.

    Raises:
        CheckpointError: if the file is missing, truncated or no safetensors file.
    """
    with _checkpoint(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextmanager
def _checkpoint(path: Path) -> Iterator[None]:
    """Name a file of weights that cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Train the stage first, or give another folder.")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}). Remove it and train the stage again."
        ) from error


def key_of(*parts: object) -> str:
    """Eight hex digits that change with anything a stage depends on."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:8]


def versions() -> dict[str, str]:
    """What the numbers of a run were made with."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; waits, with a notice, while another one trains there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process is working in {folder}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Meter:
    """Wall time and peak memory of a stage.

    The peak is that of the GPU where there is one, else of this process since the meter was made (Linux), else since
    the process began.
    """

    def __init__(self) -> None:
        import time

        self._clock = time.perf_counter
        self._start = self._clock()
        self._resettable = False
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resettable = True
        except OSError:
            self._resettable = False

    def read(self) -> dict[str, float]:
        """Seconds and MiB so far."""
        return {"seconds": round(self._clock() - self._start, 1), "peak_mib": round(self._peak() / 2**20, 1)}

    def _peak(self) -> float:
        if torch.cuda.is_available():
            return float(torch.cuda.max_memory_allocated())
        if self._resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(used) * (1 if sys.platform == "darwin" else 1024)


def rounded(values: Mapping[str, float], digits: int = 6) -> dict[str, float | None]:
    """Metrics as they are written to metrics.json; a mean over no rows is null."""
    return {name: None if math.isnan(value) else round(float(value), digits) for name, value in values.items()}
