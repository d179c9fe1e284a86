"""What a run leaves of its model: metrics, the place of every target, the reference lines beside it, its cost."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.config.load import experiment_folder
from genrl.config.schema import EvaluateConfig, RunConfig
from genrl.errors import CheckpointError
from genrl.files import kept_if_writable, key_of, locked, read_json, save_weights, sweep, write_json
from genrl.ops import world_rank, world_size
from genrl.recommenders.reference import reference_lines
from genrl.runs.evaluate import SPLITS, Evaluation, evaluate, evaluated_rows
from genrl.training.fitting import is_first

if TYPE_CHECKING:
    from genrl.runs.session import Session

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


class Meter:
    """Wall time and peak memory of a stage.

    The peak is that of the GPU where there is one, else of this process since the meter was made (Linux), else since
    the process began (0 on Windows, which does not say).

    Args:
        gpu: whether it is that of the GPU; None: where there is one.
    """

    def __init__(self, gpu: bool | None = None) -> None:
        self._gpu = torch.cuda.is_available() if gpu is None else gpu
        self._start = time.perf_counter()
        self._resettable = False
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resettable = True
        except OSError:
            self._resettable = False

    def read(self) -> dict[str, float]:
        """Seconds and MiB so far."""
        return {"seconds": round(time.perf_counter() - self._start, 1), "peak_mib": round(self._peak() / 2**20, 1)}

    def _peak(self) -> float:
        if self._gpu:
            return float(torch.cuda.max_memory_allocated())
        if self._resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
        if sys.platform == "win32":
            return 0.0
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(used) * (1 if sys.platform == "darwin" else 1024)


def written(value: Evaluation) -> dict[str, Any]:
    """Metrics as metrics.json holds them, those of other readings under `readings`; a mean over no rows is null."""
    own: dict[str, Any] = {"raw": _rounded(value.raw), "excluded": _rounded(value.excluded)}
    if value.readings:
        own["readings"] = {way: written(read) for way, read in value.readings.items()}
    return own


def save_ranks(folder: Path, scored: Mapping[str, Evaluation], dataset: Dataset, config: EvaluateConfig) -> None:
    """Keep the place of every row's target and which targets are cold, for paired comparisons.

    Those of another reading have its name at the end: `test/excluded/plain`.
    """
    ranks = {f"{split}/{kind}": rank for split, value in scored.items() for kind, rank in value.ranks.items()}
    for split, value in scored.items():
        for way, read in value.readings.items():
            ranks |= {f"{split}/{kind}/{way}": rank for kind, rank in read.ranks.items()}
    cold, items = dataset.catalog.cold, dataset.sequences.items
    for split in scored:
        ranks[f"cold/{split}"] = cold[items[evaluated_rows(dataset, config, split)]].to(torch.uint8)
    save_weights(ranks, folder / "ranks.safetensors")


def evaluation_name(config: EvaluateConfig) -> str:
    """Folder, inside that of the weights, of what they score under some options."""
    return f"evaluation-{key_of(config)}"


def score(session: Session, title: str, folder: Path) -> dict[str, Any]:
    """Metrics of a session's recommender on validation and test rows, as metrics.json holds them.

    The rows are shared out over the processes of the run; the first one keeps the ranks in a folder.
    """
    world = world_size()  # 1 until the first stage of this process has started the others
    scored: dict[str, Evaluation] = {}
    for split in SPLITS:
        rows = session.batches(split).share(world_rank(), world)
        scored[split] = evaluate(session.recommender, rows, session.config.evaluate, f"{title} {split}")
    if is_first():
        folder.mkdir(exist_ok=True)
        save_ranks(folder, scored, session.dataset, session.config.evaluate)
    return {split: written(value) for split, value in scored.items()}


def references(config: RunConfig, dataset: Dataset, codes: Tensor, split: str) -> dict[str, Any]:
    """Metrics of the reference lines, computed once per experiment; none inside candidate pools.

    They rank the whole catalogue, and their numbers must not stand beside those of a hundred candidates.
    """
    if config.data.pool.size is not None:
        return {}
    limit = {"valid": config.evaluate.valid_users, "test": config.evaluate.test_users}[split]
    level, apart = config.evaluate.level, ["ties"] if config.evaluate.ties else []
    key = key_of(dataset.fingerprint, split, limit, config.evaluate.k, level, codes.tolist(), *apart)
    path = experiment_folder(config) / f"reference-{split}-{key}.json"
    if not path.exists():
        if not is_first():
            return {}
        found = _reference_lines(config, dataset, codes, split)
        with kept_if_writable("the reference lines", path.parent), locked(path.parent):
            sweep(path.parent, ".*.reference-*")
            write_json(path, found)
        if not path.exists():
            return found
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(kinds, dict) for kinds in found.values()):
        raise CheckpointError(f"{path} is damaged: it holds no reference lines. Remove it; it is made again.")
    return found


def _reference_lines(config: RunConfig, dataset: Dataset, codes: Tensor, split: str) -> dict[str, Any]:
    level, positions = config.evaluate.level, evaluated_rows(dataset, config.evaluate, split)
    longest = max([1, *dataset.sequences.seen(positions).tolist()])
    lines = reference_lines(
        dataset, SPLITS[split], config.evaluate.k, longest, positions, codes, level, ties=config.evaluate.ties
    )
    names = [name for name in lines if "/" not in name]
    return {n: {"raw": _rounded(lines[n]), "excluded": _rounded(lines[f"{n}/history_excluded"])} for n in names}


def _rounded(values: Mapping[str, float], digits: int = 6) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(float(value), digits) for name, value in values.items()}
