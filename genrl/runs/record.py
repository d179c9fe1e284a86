"""What a finished run says about its model: metrics, the place of every target, the reference lines beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.config.schema import EvaluateConfig, RunConfig
from genrl.recommenders.reference import reference_lines
from genrl.runs.evaluate import SPLITS, Evaluation, evaluated_rows
from genrl.training.fitting import is_first
from genrl.files import key_of, read_json, rounded, write_json


def written(value: Evaluation) -> dict[str, dict[str, float | None]]:
    """Metrics as metrics.json holds them."""
    return {"raw": rounded(value.raw), "excluded": rounded(value.excluded)}


def save_ranks(folder: Path, scored: Mapping[str, Evaluation], dataset: Dataset, config: EvaluateConfig) -> None:
    """Keep the place of every row's target and which targets are cold, for paired comparisons."""
    ranks = {f"{split}/{kind}": rank for split, value in scored.items() for kind, rank in value.ranks.items()}
    cold, items = dataset.catalog.cold, dataset.sequences.items
    for split in scored:
        ranks[f"cold/{split}"] = cold[items[evaluated_rows(dataset, config, split)]].to(torch.uint8)
    temporary = folder / ".ranks.writing"
    save_file(ranks, temporary)
    temporary.replace(folder / "ranks.safetensors")


def references(config: RunConfig, dataset: Dataset, codes: Tensor, split: str) -> dict[str, Any]:
    """Metrics of the reference lines, computed once per experiment."""
    limit = {"valid": config.evaluate.valid_users, "test": config.evaluate.test_users}[split]
    key = key_of(
        dataset.fingerprint,
        split,
        limit,
        config.evaluate.k,
        config.evaluate.level,
        codes.tolist(),
    )
    path = Path(config.output) / config.experiment / f"reference-{split}-{key}.json"
    if not path.exists():
        if not is_first():
            return {}
        positions = evaluated_rows(dataset, config.evaluate, split)
        sequences = dataset.sequences
        before = (positions - sequences.offsets[sequences.users(positions)]).tolist()
        lines = reference_lines(
            dataset,
            SPLITS[split],
            config.evaluate.k,
            history_length=max([1, *before]),
            positions=positions,
            codes=codes,
            level=config.evaluate.level,
        )
        names = [name for name in lines if "/" not in name]
        write_json(
            path,
            {n: {"raw": rounded(lines[n]), "excluded": rounded(lines[f"{n}/history_excluded"])} for n in names},
        )
    return dict(read_json(path))
