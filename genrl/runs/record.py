"""What a run leaves of its model: metrics, the place of every target, the reference lines beside it, its cost."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.config.schema import EvaluateConfig, RunConfig
from genrl.files import key_of, read_json, save_weights, write_json
from genrl.recommenders.reference import reference_lines
from genrl.runs.evaluate import SPLITS, Evaluation, evaluated_rows
from genrl.training.fitting import is_first

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
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
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
        return {"seconds": round(time.perf_counter() - self._start, 1), "peak_mib": round(self._peak() / 2**20, 1)}

    def _peak(self) -> float:
        if torch.cuda.is_available():
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


def written(value: Evaluation) -> dict[str, dict[str, float | None]]:
    """Metrics as metrics.json holds them; a mean over no rows is null."""
    return {"raw": _rounded(value.raw), "excluded": _rounded(value.excluded)}


def save_ranks(folder: Path, scored: Mapping[str, Evaluation], dataset: Dataset, config: EvaluateConfig) -> None:
    """Keep the place of every row's target and which targets are cold, for paired comparisons."""
    ranks = {f"{split}/{kind}": rank for split, value in scored.items() for kind, rank in value.ranks.items()}
    cold, items = dataset.catalog.cold, dataset.sequences.items
    for split in scored:
        ranks[f"cold/{split}"] = cold[items[evaluated_rows(dataset, config, split)]].to(torch.uint8)
    save_weights(ranks, folder / "ranks.safetensors")


def references(config: RunConfig, dataset: Dataset, codes: Tensor, split: str) -> dict[str, Any]:
    """Metrics of the reference lines, computed once per experiment."""
    limit = {"valid": config.evaluate.valid_users, "test": config.evaluate.test_users}[split]
    level, apart = config.evaluate.level, ["ties"] if config.evaluate.ties else []
    key = key_of(dataset.fingerprint, split, limit, config.evaluate.k, level, codes.tolist(), *apart)
    path = Path(config.output) / config.experiment / f"reference-{split}-{key}.json"
    if not path.exists():
        if not is_first():
            return {}
        positions = evaluated_rows(dataset, config.evaluate, split)
        longest = max([1, *dataset.sequences.seen(positions).tolist()])
        lines = reference_lines(
            dataset, SPLITS[split], config.evaluate.k, longest, positions, codes, level, ties=config.evaluate.ties
        )
        names = [name for name in lines if "/" not in name]
        write_json(
            path, {n: {"raw": _rounded(lines[n]), "excluded": _rounded(lines[f"{n}/history_excluded"])} for n in names}
        )
    return dict(read_json(path))


def _rounded(values: Mapping[str, float], digits: int = 6) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(float(value), digits) for name, value in values.items()}
