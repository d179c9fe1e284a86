"""Whether a finished run still is what it was: its files, those of the stages that it began with, and its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from genrl.errors import CheckpointError
from genrl.files import read_json, read_weights
from genrl.recommenders.base import WEIGHTS
from genrl.runs.manifest import METRICS, check


def verify(folder: Path) -> str:
    """Check a run or a stage, and the stages beside it that the run began with.

    Returns:
        What was checked, in words.

    Raises:
        CheckpointError: naming every file that is missing, of another content, or holds weights that are no numbers.
    """
    files = len(check(folder))
    stages = read_json(folder / METRICS).get("stages", {})
    shared = [folder.parent / Path(cost["folder"]).name for cost in stages.values() if "evaluation" in cost]
    files += sum(len(check(place)) for place in shared)
    values = sum(_numbers(place / WEIGHTS) for place in (folder, *shared) if (place / WEIGHTS).is_file())
    beside = f", {len(shared)} shared stage(s) among them" if shared else ""
    return f"{folder}: {files} files are what they were{beside}; {values:,} weights, all of them finite."


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds; none of them may be NaN or infinite."""
    state = read_weights(path)
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values. Train the stage again.")
    return sum(value.numel() for value in state.values())
