"""The report of a comparison: what its finished runs say, with intervals, as data, as Markdown and as curves."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genrl.config import load_config
from genrl.errors import DataError
from genrl.metrics.comparison import holm, paired_difference, seed_interval, warnings_of
from genrl.metrics.functional import ndcg_at_k
from genrl.training import comparison_curves, comparison_table
from genrl.training.comparison import choose
from genrl.training.comparison_plan import Plan, Run, check_baseline
from genrl.training.folder import key_of, read_json, write_json

SPLITS = ("test", "valid")
KINDS = ("raw", "excluded")
SECONDARY = ("recall", "entropy", "cold_recall", "coverage", "top1pct_share")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    folder: Path
    metrics: Tree

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.metrics["seed"])

    @property
    def aligned(self) -> Path:
        """Where the scores of the weights lie that stage `rl` began with; found beside the run, wherever that is."""
        return self.folder.parent.joinpath(*Path(self.metrics["stages"]["align"]["evaluation"]).parts[-2:])


Rows = Mapping[str, Sequence[Finished]]
"""Row of the report -> its finished runs, one per seed."""


def write_report(folder: Path, plan: Plan | None, baseline: str) -> str:
    """Write report.json, report.md and report.png of an experiment, from what is finished.

    Args:
        folder: of the experiment.
        plan: the comparison; None reports every finished run of the folder, by name.
        baseline: the row that the others are compared with, or `align`.

    Returns:
        The Markdown text.

    Raises:
        DataError: if no run is finished, or runs cannot be compared.
        ConfigError: if there is no such baseline.
    """
    rows = found_rows(folder) if plan is None else planned_rows(plan)
    planned = [] if plan is None else [run.folder for run in expected_runs(plan)]
    runs = [run for found in rows.values() for run in found]
    if not runs:
        raise DataError(f"{folder}: no run of stage rl is finished there, so there is nothing to report.")
    check_baseline(baseline, list(rows if plan is None else plan.rows))
    report = {
        **describe(runs),
        "baseline": baseline,
        "unfinished": [path.name for path in planned if not _done(path)],
        "choices": {} if plan is None else choices(plan),
        "tables": {split: {kind: table(rows, split, kind, baseline) for kind in KINDS} for split in SPLITS},
        "commands": {run.folder.name: run.metrics["command"] for run in runs},
        "cost": cost(rows),
    }
    text = comparison_table.markdown(report)
    write_json(folder / "report.json", report)
    comparison_curves.draw({row: [run.folder for run in found] for row, found in rows.items()}, folder / "report.png")
    temporary = folder / f".report.md.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "report.md")
    return text


def planned_rows(plan: Plan) -> dict[str, list[Finished]]:
    """Finished runs of the chosen candidate of each row; a row without one is left out."""
    rows = {}
    for row, candidates in plan.rows.items():
        best = choose(candidates).best
        folders = [] if best is None else [run.folder for run in best.runs]
        finished = [Finished(path, read_json(path / "metrics.json")) for path in folders if _done(path)]
        if finished:
            rows[row] = finished
    return rows


def found_rows(folder: Path) -> dict[str, list[Finished]]:
    """Every finished run of an experiment that has a stage `rl`, by name and seed."""
    runs = [Finished(path.parent, read_json(path)) for path in sorted(folder.glob("*-s*/metrics.json"))]
    runs = [run for run in runs if {"align", "rl"} <= run.metrics["stages"].keys()]
    names = dict.fromkeys(run.metrics["name"] for run in runs)
    return {name: sorted((r for r in runs if r.metrics["name"] == name), key=lambda run: run.seed) for name in names}


def expected_runs(plan: Plan) -> list[Run]:
    """The runs that the comparison needs as far as it is known: first seeds, and all seeds of what was chosen."""
    needed = []
    for candidates in plan.rows.values():
        best = choose(candidates).best
        needed += [candidate.runs[0] for candidate in candidates]
        needed += [] if best is None else best.runs[1:]
    return needed


def choices(plan: Plan) -> Tree:
    """What each row with a grid was chosen from, with the scores on validation; no score on test."""
    found: Tree = {}
    for row, candidates in plan.rows.items():
        if len(candidates) == 1:
            continue
        choice = choose(candidates)
        points = [
            {"run": candidate.runs[0].folder.name, "point": dict(candidate.point), "score": score}
            for candidate, score in zip(candidates, choice.scores, strict=True)
        ]
        metric = f"ndcg@{max(candidates[0].runs[0].config.evaluate.k)}"
        chosen = None if choice.best is None else dict(choice.best.point)
        found[row] = {"metric": f"valid raw {metric}", "points": points, "chosen": chosen}
    return found


def describe(runs: Sequence[Finished]) -> Tree:
    """What all runs have in common: data, SIDs, the align stage and versions.

    Raises:
        DataError: if they do not share the first three, so that a difference would say nothing about objectives.
    """
    first = runs[0]
    for run in runs[1:]:
        if (run.metrics["data"], run.aligned) != (first.metrics["data"], first.aligned):
            raise DataError(
                f"{run.folder} and {first.folder} do not share data, Semantic IDs, stage align and evaluation, so they "
                f"cannot stand in one table. Put one of them into another experiment."
            )
    config = load_config([first.folder / "config.yaml"])
    path = first.folder.parent / f"sid-{key_of(first.metrics['data']['fingerprint'], config.sid)}.safetensors"
    codes = load_file(path)["codes"].numpy().tobytes() if path.exists() else None
    return {
        "experiment": first.metrics["experiment"],
        "data": first.metrics["data"],
        "sid": {**first.metrics["sid"], "fingerprint": codes and hashlib.sha256(codes).hexdigest()[:16]},
        "align": first.aligned.parent.name,
        "versions": read_json(first.folder / "versions.json"),
    }


def table(rows: Rows, split: str, kind: str, baseline: str) -> Tree:
    """One table: reference lines, align, and each row with its difference to the baseline."""
    first = next(iter(rows.values()))[0]
    scored = first.metrics[split]
    top = max(int(name.partition("@")[2]) for name in scored["align"][kind] if name.startswith("ndcg@"))
    outcomes = {"align": {0: _outcomes(first.aligned, split, kind, top)}}
    lines: Tree = {
        name: {"metrics": _means([values[kind]], top), "seeds": []} for name, values in scored.items() if name != "rl"
    }
    for row, runs in rows.items():
        outcomes[row] = {run.seed: _outcomes(run.folder, split, kind, top) for run in runs}
        values = [run.metrics[split]["rl"][kind] for run in runs]
        interval = seed_interval(torch.tensor([value[f"ndcg@{top}"] for value in values], dtype=torch.float64))
        lines[row] = {
            "metrics": _means(values, top),
            "seeds": [run.seed for run in runs],
            "by_seed": [value[f"ndcg@{top}"] for value in values],
            "interval": [_number(interval.low), _number(interval.high)],
        }
    _add_differences(lines, outcomes, baseline)
    return {"k": top, "users": len(outcomes["align"][0]), "lines": lines}


def cost(rows: Rows) -> Tree:
    """Seconds and peak memory of the stages, mean and largest over seeds."""
    found: Tree = {}
    for row, runs in rows.items():
        found.setdefault("align", _cost([runs[0].metrics["stages"]["align"]]))
        found[row] = _cost([run.metrics["stages"]["rl"] for run in runs])
    return found


def _add_differences(lines: Tree, outcomes: Mapping[str, Mapping[int, Tensor]], baseline: str) -> None:
    theirs = outcomes.get(baseline)
    if theirs is None:  # not finished yet
        return
    compared = [name for name in outcomes if name != baseline]
    p_values = []
    for name in compared:
        difference = paired_difference(*_paired(outcomes[name], theirs))
        p_values.append(difference.p_value)
        lines[name]["difference"] = {
            "effect": _number(difference.effect),
            "low": _number(difference.low),
            "high": _number(difference.high),
            "relative": _number(difference.relative),
            "seed_noise": _number(difference.seed_noise),
            "warnings": warnings_of(difference, difference.users),
        }
    for name, value in zip(compared, holm(torch.tensor(p_values, dtype=torch.float64)).tolist(), strict=True):
        lines[name]["difference"]["p_holm"] = _number(value)


def _paired(ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Outcomes [seeds, users] of both, with the seeds that both have where each has several."""
    common = [seed for seed in ours if seed in theirs]
    if min(len(ours), len(theirs)) > 1 and common:
        return torch.stack([ours[seed] for seed in common]), torch.stack([theirs[seed] for seed in common])
    return torch.stack(list(ours.values())), torch.stack(list(theirs.values()))


def _outcomes(folder: Path, split: str, kind: str, top: int) -> Tensor:
    """NDCG of every user [R]."""
    return ndcg_at_k(load_file(folder / "ranks.safetensors")[f"{split}/{kind}"][:, None], top)


def _means(values: Sequence[Mapping[str, float | None]], top: int) -> dict[str, float | None]:
    """Means over seeds of the metrics that the tables show; None where a metric has no rows."""
    found: dict[str, float | None] = {}
    for name in (f"{metric}@{top}" for metric in ("ndcg", *SECONDARY)):
        known = [value for value in (part[name] for part in values) if value is not None]
        found[name] = _number(statistics.mean(known)) if known else None
    return found


def _cost(stages: Sequence[Mapping[str, float]]) -> Tree:
    seconds = statistics.mean(stage["seconds"] for stage in stages)
    return {"seconds": round(seconds, 1), "peak_mib": max(stage["peak_mib"] for stage in stages)}


def _number(value: float) -> float | None:
    return round(value, 8) if math.isfinite(value) else None


def _done(folder: Path) -> bool:
    return (folder / "metrics.json").exists()
