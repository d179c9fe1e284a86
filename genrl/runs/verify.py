"""Whether a finished run still is what it was: its files, those of the stages that it began with, and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genrl.config.load import load_config
from genrl.errors import CheckpointError
from genrl.files import read_json, read_weights
from genrl.manifest import METRICS, check
from genrl.recommenders.base import WEIGHTS
from genrl.runs.inputs import check_inputs, modules
from genrl.runs.recommend import inside, refuse_unfinished
from genrl.training.checkpoints import points, whole


def verify(folder: Path) -> str:
    """Check files, scores, checkpoints and weights of a run or a stage; of a run also its stages, plug-ins, base model.

    Returns:
        What was checked, in words.

    Raises:
        CheckpointError: naming every file that is missing, of another content, or holds weights that are no numbers.
    """
    refuse_unfinished(folder)
    if not (folder / METRICS).is_file():
        raise CheckpointError(f"{folder} is no finished run or stage (no {METRICS} there).{inside(folder)}")
    files = len(check(folder))
    stages = _stages(folder / METRICS)
    places = [folder, *(folder.parent / Path(cost["folder"]).name for cost in stages.values() if "evaluation" in cost)]
    files += sum(len(check(place)) for place in places[1:])
    files += sum(len(check(path.parent)) for place in places for path in place.glob(f"evaluation-*/{METRICS}"))
    files += sum(_checkpoints(place) for place in places)
    if (folder / "config.yaml").is_file():
        config = load_config([folder / "config.yaml"], imports=False)
        check_inputs(folder, config, ["model.name", *modules(config)])
    values = sum(_numbers(path) for place in places for path in place.rglob(WEIGHTS))
    beside = f", those of {len(places) - 1} shared stage(s) among them" if stages else ""
    return f"{folder}: {files} files are what they were{beside}; {values:,} weights, all of them finite."


def _stages(path: Path) -> dict[str, dict[str, Any]]:
    """What each stage of a run cost, by name; nothing for a stage."""
    metrics = read_json(path)
    stages = metrics.get("stages", {}) if isinstance(metrics, dict) else None
    if not isinstance(stages, dict) or not all(
        isinstance(cost, dict) and isinstance(cost.get("folder"), str) for cost in stages.values()
    ):
        raise CheckpointError(f"{path} is damaged: it holds no stages of a run. Remove the folder and run it again.")
    return stages


def _checkpoints(folder: Path) -> int:
    """How many checkpoints a folder holds, each of which must be whole."""
    found = points(folder)
    damaged = [path.name for path in found if not whole(path)]
    if damaged:
        raise CheckpointError(
            f"{folder}: {', '.join(damaged)} does not hold what was written into it. A finished run does without: "
            f"remove it, and see whether the disk is sound."
        )
    return len(found)


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds; none of them may be NaN or infinite."""
    state = read_weights(path)
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values. Remove the folder and run the stage again."
            )
    return sum(value.numel() for value in state.values())
