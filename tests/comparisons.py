"""Plans and finished runs for tests of comparisons, made without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genrl.cli import compose, parse
from genrl.config import RunConfig, save_config
from genrl.metrics.functional import ndcg_at_k, recall_at_k
from genrl.training.comparison_plan import Plan, Run, make_plan, parse_budget, parse_grid, parse_rows

ALIGNED = (0, 3, 20, 20, 5, 20)
"""Place of each user's target before stage `rl`; 20 is a miss."""


def configure(words: list[str]) -> RunConfig:
    """What the command line makes of words."""
    return compose(parse(words))


def plan_of(
    output: Path,
    objectives: str,
    *overrides: str,
    seeds: Sequence[int] = (0, 1),
    grids: Sequence[str] = (),
    budget: str | None = None,
    length: int = 3,
) -> Plan:
    """A comparison as the command line plans it."""
    rows = parse_rows(objectives)
    return make_plan(
        rows,
        seeds,
        [parse_grid(text, rows) for text in grids],
        None if budget is None else parse_budget(budget),
        (["--output", str(output)], overrides),
        configure,
        lambda config: length,
    )


def finish(run: Run, ranks: Sequence[int], valid: float | None = None, align: str = "align-1") -> None:
    """Leave the folder of a run as if it had been trained; every part and ranking has the same ranks.

    Args:
        run: of a plan.
        ranks: place of each user's target, 0-based.
        valid: validation NDCG, if it is to differ from that of the ranks.
        align: folder of stage `align`, made if it is not there.
    """
    folder = run.folder
    evaluation = folder.parent / align / "evaluation-1"
    for place, held in ((folder, ranks), (evaluation, ALIGNED)):
        place.mkdir(parents=True, exist_ok=True)
        keys = (f"{split}/{kind}" for split in ("valid", "test") for kind in ("raw", "excluded"))
        save_file({key: torch.tensor(held) for key in keys}, place / "ranks.safetensors")
    scores: dict[str, Any] = {
        split: {"most_popular": _scored(ALIGNED), "align": _scored(ALIGNED), "rl": _scored(ranks)}
        for split in ("valid", "test")
    }
    if valid is not None:
        scores["valid"]["rl"]["raw"]["ndcg@10"] = valid
    stage = {"seconds": 2.0 + run.config.seed, "peak_mib": 100.0 + run.config.seed, "best_step": 4}
    metrics = {
        "name": run.config.name or run.config.objective["name"],
        "experiment": run.config.experiment,
        "seed": run.config.seed,
        "data": {"name": "toy", "fingerprint": "f00d"},
        "sid": {"levels": 2, "codes": [8, 8]},
        "command": " ".join(run.words),
        "stages": {"align": {**stage, "evaluation": str(evaluation)}, "rl": stage},
        **scores,
    }
    notes = [
        {"step": step, "val/ndcg@10": 0.1 * step, "train/reward": step + run.config.seed, "objective/dead_groups": 0.5}
        for step in (1, 2)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    (folder / "versions.json").write_text('{"python": "3", "device": "cpu"}')
    save_config(run.config, folder / "config.yaml")
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _scored(ranks: Sequence[int]) -> dict[str, dict[str, float | None]]:
    places = torch.tensor(ranks)[:, None]
    values = {"ndcg@10": float(ndcg_at_k(places, 10).mean()), "recall@10": float(recall_at_k(places, 10).mean())}
    values |= {
        "ndcg@5": 0.5,
        "recall@5": 0.5,
        "entropy@10": 1.5,
        "coverage@10": 0.25,
        "cold_recall@10": None,
        "top1pct_share@10": 0.1,
    }
    return {kind: dict(values) for kind in ("raw", "excluded")}
