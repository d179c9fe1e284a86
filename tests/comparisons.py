"""Plans and finished runs for tests of comparisons, made without training."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl.cli import parse
from genrl.cli.configuration import compose
from genrl.compare.plan import Plan, Run, make_plan, parse_budget, parse_grid, parse_rows
from genrl.config import RunConfig, run_folder, save_config
from genrl.manifest import seal
from genrl.metrics.functional import ndcg_at_k, recall_at_k
from genrl.runs.stages import supervised_stages

ALIGNED = (0, 3, 20, 20, 5, 20)
"""Place of each user's target before stage `rl`; 20 is a miss."""
ACTIVATED = (0, 2, 20, 9, 5, 20)
"""The same behind stage `activate`, where there is one."""
COLD = (0, 1, 0, 1, 1, 0)
"""Whose target is cold."""


PLAIN = ("layout=sid", "stages=[align,rl]")
"""No thinking, unless a test asks for it."""


def configure(words: list[str]) -> RunConfig:
    """What the command line makes of words; made once for all output folders."""
    if "--output" not in words:
        return compose(parse(words))
    place = words.index("--output")
    return replace(deepcopy(_composed(*words[:place], *words[place + 2 :])), output=words[place + 1])


@cache
def _composed(*words: str) -> RunConfig:
    return compose(parse([*words]))


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
        (["--output", str(output)], [*PLAIN, *overrides]),
        configure,
        lambda config: length,
    )


def finish(
    run: Run,
    ranks: Sequence[int],
    valid: float | None = None,
    align: str = "align-1",
    aligned: Sequence[int] = ALIGNED,
    cold: Sequence[int] | None = COLD,
) -> None:
    """Leave the folder of a run as if it had been trained; every part and ranking has the same ranks.

    Args:
        run: of a plan.
        ranks: place of each user's target, 0-based; `aligned`: before stage `rl`, and for the reference line.
        valid: validation NDCG, if it is to differ from that of the ranks.
        align: folder of stage `align`, made if it is not there.
        cold: whose target is cold; None: a run of a version that did not keep it.
    """
    config = run.config
    folders = {"align": (align, aligned), "activate": ("activate-1", ACTIVATED)}
    shared = {stage: folders[stage] for stage in supervised_stages(config)}
    places = {stage: run.folder.parent / folder / "evaluation-1" for stage, (folder, _) in shared.items()}
    for stage, place in places.items():
        _save_ranks(place, shared[stage][1], cold)
        seal(place, {split: _scored(shared[stage][1], cold) for split in ("valid", "test")})
    parts = {"most_popular": aligned, **{stage: held for stage, (_, held) in shared.items()}, "rl": ranks}
    scores: dict[str, Any] = {
        split: {name: _scored(held, cold) for name, held in parts.items()} for split in ("valid", "test")
    }
    if valid is not None:
        for kind in ("raw", "excluded"):
            scores["valid"]["rl"][kind]["ndcg@10"] = valid
    stage = _stage(config)
    stages = {name: {**stage, "evaluation": str(place)} for name, place in places.items()} | {"rl": stage}
    about = {"objective": {"name": config.objective["name"], "title": "An Objective", "paper": "Someone 2026"}}
    name = config.name or config.objective["name"]
    _leave(config, ranks, cold, {"name": name, **about, "command": " ".join(run.words), "stages": stages, **scores})


def finish_baseline(
    output: Path,
    name: str,
    ranks: Sequence[int],
    seed: int = 0,
    aligned: Sequence[int] = ALIGNED,
    cold: Sequence[int] | None = COLD,
    data: str = "f00d",
) -> Path:
    """Leave the folder of a run of a baseline; arguments as for `finish`, and the fingerprint of the data."""
    config = RunConfig(output=str(output), seed=seed, stages=["baseline"], baseline={"name": name, "window": 3})
    metrics = {
        "name": name,
        "baseline": {"name": name, "title": "A Baseline", "paper": ""},
        "command": f"fit --baseline {name}",
        "stages": {"baseline": _stage(config)},
        **{
            split: {"most_popular": _scored(aligned, cold), "baseline": _scored(ranks, cold)}
            for split in ("valid", "test")
        },
    }
    return _leave(config, ranks, cold, metrics, data)


def _stage(config: RunConfig) -> dict[str, float]:
    return {"seconds": 2.0 + config.seed, "peak_mib": 100.0 + config.seed, "best_step": 4}


def _save_ranks(folder: Path, ranks: Sequence[int], cold: Sequence[int] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    saved = {f"{split}/{kind}": torch.tensor(ranks) for split in ("valid", "test") for kind in ("raw", "excluded")}
    if cold is not None:
        saved |= {f"cold/{split}": torch.tensor(cold, dtype=torch.uint8) for split in ("valid", "test")}
    save_file(saved, folder / "ranks.safetensors")


def _leave(
    config: RunConfig,
    ranks: Sequence[int],
    cold: Sequence[int] | None,
    metrics: dict[str, Any],
    data: str = "f00d",
) -> Path:
    """Write what every run folder has."""
    folder = run_folder(config)
    _save_ranks(folder, ranks, cold)
    common = {
        "experiment": config.experiment,
        "seed": config.seed,
        "data": {"name": "toy", "fingerprint": data},
        "sid": {"levels": 2, "codes": [8, 8]},
    }
    notes = [
        {
            "step": step,
            "val/ndcg@10": 0.1 * step,
            "train/reward": step + config.seed,
            "objective/dead_groups": 0.5,
            "train/match/step1": 0.2 * step,
        }
        for step in (1, 2)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    (folder / "versions.json").write_text('{"python": "3", "device": "cpu"}')
    save_config(config, folder / "config.yaml")
    seal(folder, {**common, **metrics})
    return folder


def _scored(ranks: Sequence[int], cold: Sequence[int] | None) -> dict[str, dict[str, float | None]]:
    places = torch.tensor(ranks)[:, None]
    counted = recall_at_k(places, 10)[torch.tensor(cold or [0] * len(ranks)).bool()]
    values = {
        **{"ndcg@10": float(ndcg_at_k(places, 10).mean()), "recall@10": float(recall_at_k(places, 10).mean())},
        **{"ndcg@5": 0.5, "recall@5": 0.5, "entropy@10": 1.5, "coverage@10": 0.25, "top1pct_share@10": 0.1},
        "cold_recall@10": float(counted.mean()) if len(counted) else None,
    }
    return {kind: dict(values) for kind in ("raw", "excluded")}


def read_events(folder: Path) -> EventAccumulator:
    """What TensorBoard reads in a folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(events: EventAccumulator) -> dict[str, dict[int, float]]:
    """Tag -> step -> value."""
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
