"""The finished runs of an experiment by row of its report, and what one has to know of them."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genrl.compare.plan import UNLIMITED, Plan, completions
from genrl.compare.record import Row
from genrl.compare.run import choose, is_done
from genrl.config import RunConfig
from genrl.config.saved import read_saved
from genrl.errors import CheckpointError, ConfigError, DataError, GenRLError, shown
from genrl.files import read_json
from genrl.given import parsed
from genrl.manifest import METRICS, check
from genrl.objectives import OBJECTIVES
from genrl.plots import Notes, noted_lines, read_notes
from genrl.recommenders.bundle import SIDS
from genrl.runs.folder import differences
from genrl.runs.stages import SUPERVISED

UNUSED = {
    "rl": ("experiment", "name", "seed", "baseline"),
    "baseline": ("experiment", "name", "seed", "objective", "rewards", "rollout", "rl", *SUPERVISED, "layout"),
}
"""Stage that a run is about -> what its seeds may differ in, or sections that it does not read."""
SPLITS = ("test", "valid")
KINDS = ("raw", "excluded")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A finished run: of an objective, or of a baseline."""

    folder: Path
    metrics: Tree
    scored: Path
    """Where its ranks lie: its own folder, or one inside it if it was scored again."""

    @classmethod
    def read(cls, folder: Path, evaluate: Sequence[str] = ()) -> Finished:
        """A run as it was scored, or with other options of evaluation, for which it is scored if need be.

        Raises:
            CheckpointError: if a file of it, or of the scores of a stage that it began with, is not what it was.
        """
        check(folder)
        if not evaluate:
            found = cls(folder, read_json(folder / METRICS), folder)
        else:
            from genrl.runs.rescore import rescore  # takes seconds to load

            record = rescore(folder, evaluate)
            found = cls(folder, record.metrics, record.folder)
        found.refuse_misfits()
        for place in found.shared.values():
            check(place)
        return found

    def refuse_misfits(self) -> None:
        """Refuse a run of which a report of its own could not be made, whoever has written its manifest.

        Raises:
            CheckpointError: with what cannot be read.
        """
        try:
            describe([self])
            row_facts([self], read_notes(self.folder))
            read_samples(self.folder)
            numbers = [values for split in SPLITS for values in (self.scores(split), *self.references(split).values())]
            sum(value for kinds in numbers for kind in KINDS for value in kinds[kind].values() if value is not None)
            sum(stage[name] for stage in self.metrics["stages"].values() for name in ("seconds", "peak_mib"))
            self.metrics["stages"][self.stage]["best_step"] + len(self.metrics["command"] + self.row)
            str(
                [
                    self.rows_scored(),
                    self.shared,
                    *(len(self.ranks[f"{part}/{kind}"]) for part in SPLITS for kind in KINDS),
                ]
            )
        except GenRLError:
            raise
        except (AttributeError, LookupError, OSError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder} is damaged: it cannot be reported ({type(error).__name__}: {shown(error)}). Bring its "
                f"files back from a copy, or remove the folder and run it again."
            ) from error

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def stage(self) -> str:
        """The stage that the run is about: `rl` or `baseline`."""
        return "baseline" if "baseline" in self.metrics["stages"] else "rl"

    @property
    def row(self) -> str:
        """Row of the report. A baseline that has a reference line's name and other numbers gets a row of its own."""
        name: str = self.metrics["name"]
        return f"{name} (run)" if self.stage == "baseline" and self._has_other_numbers() else name

    @property
    def shared(self) -> dict[str, Path]:
        """Each stage before `rl`, in order, and where its scores lie: beside the run, wherever that is.

        They lie elsewhere if the run was scored again in a folder that cannot be written to.
        """
        stages = self.metrics["stages"]
        said = {stage: Path(stages[stage]["evaluation"]) for stage in SUPERVISED if stage in stages}
        beside = {stage: self.folder.parent.joinpath(*path.parts[-2:]) for stage, path in said.items()}
        here = self.folder in (self.scored, self.scored.parent)
        return {stage: place if here or place.exists() else said[stage] for stage, place in beside.items()}

    @cached_property
    def config(self) -> RunConfig:
        return read_saved(self.folder)

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """`<split>/<kind>`: [R] place of each row's target; `cold/<split>`: [R], 1 where that target is cold."""
        return load_file(self.scored / "ranks.safetensors")

    def scores(self, split: str) -> Tree:
        """Metrics on a split, by kind."""
        found: Tree = self.metrics[split][self.stage]
        return found

    def references(self, split: str) -> Tree:
        """Metrics of the reference lines on a split, by name and kind."""
        stages = (*SUPERVISED, "rl", "baseline")
        return {name: value for name, value in self.metrics[split].items() if name not in stages}

    def rows_scored(self) -> tuple[object, ...]:
        """What runs must share to stand in one table: data, pools, number of rows, cut-offs, and what a hit is."""
        counts = [len(self.ranks[f"{split}/raw"]) for split in SPLITS]
        cuts = sorted(name for name in self.scores("test")["raw"] if name.startswith("ndcg@"))
        data = self.metrics["data"]
        return (data["fingerprint"], data.get("pool"), self.config.evaluate.level, *counts, *cuts)

    def _has_other_numbers(self) -> bool:
        """Whether a reference line has the name of this run and other numbers, for example with other options."""
        name = self.metrics["name"]
        return any(
            abs(self.scores(split)[kind][metric] - value) > 2e-6  # both are rounded to 6 digits
            for split in SPLITS
            for kind, values in self.references(split).get(name, {}).items()
            for metric, value in values.items()
            if metric.startswith(("ndcg@", "recall@"))
        )


Rows = Mapping[str, Sequence[Finished]]
"""Row of the report -> its finished runs, one per seed."""


Damaged = dict[str, str]
"""Run that cannot be reported -> why."""


def read_whole(folders: Sequence[Path], evaluate: Sequence[str], damaged: Damaged | None) -> list[Finished]:
    """The finished runs of some folders; those that are damaged are told in `damaged`, or raised without it."""
    found = []
    for folder in folders:
        with _told(folder, damaged):
            found.append(Finished.read(folder, evaluate))
    return found


@contextmanager
def _told(folder: Path, damaged: Damaged | None) -> Iterator[None]:
    """Within the block, what is wrong with a run is told in `damaged`, if there is one."""
    try:
        yield
    except (CheckpointError, ConfigError, DataError) as error:
        if damaged is None:
            raise
        damaged[folder.name] = str(error)


def planned_rows(plan: Plan, evaluate: Sequence[str] = (), damaged: Damaged | None = None) -> dict[str, list[Finished]]:
    """Finished runs of the chosen candidate of each row; a row without one is left out.

    Args:
        plan: the comparison.
        evaluate: `evaluate.option=value` texts that the runs are to be scored with.
        damaged: as `read_whole`.
    """
    rows = {}
    for row, candidates in plan.rows.items():
        _, best = choose(candidates)
        folders = [] if best is None else [run.folder for run in best.runs]
        finished = read_whole([path for path in folders if is_done(path)], evaluate, damaged)
        if finished:
            rows[row] = finished
    return rows


def found_rows(
    folder: Path, *stages: str, evaluate: Sequence[str] = (), damaged: Damaged | None = None
) -> dict[str, list[Finished]]:
    """Every finished run of an experiment that has these stages, by row and seed; no copies of one another.

    Runs that are damaged are told in `damaged`, or raised without it.
    """
    folders = [path.parent for path in sorted(folder.glob(f"*-s*/{METRICS}"))]
    folders = [path for path in folders if _has(path, stages, damaged)]
    runs = read_whole(folders, evaluate, damaged)
    known: dict[tuple[str, int], Finished] = {}
    for run in runs:
        other = known.setdefault((run.row, run.seed), run)
        if other is not run:
            raise DataError(
                f"{other.folder} and {run.folder} are both {run.row} with seed {run.seed}, which would count twice. "
                f"Remove one, or put it elsewhere."
            )
    names = dict.fromkeys(run.row for run in runs)
    return {name: sorted((r for r in runs if r.row == name), key=lambda run: run.seed) for name in names}


def _has(folder: Path, stages: Sequence[str], damaged: Damaged | None) -> bool:
    """Whether a whole run has these stages, which its metrics say if they are what they were."""
    with _told(folder, damaged):
        check(folder)
        metrics = read_json(folder / METRICS)
        known = metrics.get("stages") if isinstance(metrics, dict) else None
        if not isinstance(known, dict):
            raise CheckpointError(
                f"{folder / METRICS} is damaged: it names no stages. Remove the folder and run again."
            )
        return set(stages) <= known.keys()
    return False


def with_shared_stages(rows: dict[str, list[Finished]]) -> dict[str, list[Finished]]:
    """The runs that have a stage before `rl`, where rows begin that can be compared."""
    kept = {row: [run for run in found if run.shared] for row, found in rows.items()}
    return {row: found for row, found in kept.items() if found}


def begun(folder: Path) -> list[Path]:
    """Folders of all runs of an experiment, finished or not."""
    return [path.parent for path in sorted(folder.glob("*-s*/config.yaml"))]


def mixed(rows: Rows) -> list[str]:
    """A sentence on each run whose options are not those of the first seed of its row."""
    found = []
    for first, *others in rows.values():
        for run in others:
            changed = differences(first.folder / "config.yaml", run.config)
            changed = [name for name in changed if name.partition(".")[0] not in UNUSED[run.stage]]
            if changed:
                found.append(
                    f"{run.folder.name} and {first.folder.name} stand in one row but differ in {', '.join(changed)}: "
                    f"the mean is of different settings."
                )
    return found


def comparable(baselines: Rows, rows: Rows) -> tuple[dict[str, list[Finished]], list[str]]:
    """The baselines of the same data and rows as the objectives (or the first baseline); a sentence on each other."""
    both = next((name for name in baselines if name in rows), None)
    if both is not None:
        folders = ", ".join(str(run.folder) for run in (*baselines[both], *rows[both]))
        raise DataError(f"{both} is a baseline and an objective: {folders}. Remove one, or put it elsewhere.")
    runs = [run for found in (*rows.values(), *baselines.values()) for run in found]
    wanted = runs[0].rows_scored() if runs else ()
    kept: dict[str, list[Finished]] = {}
    notes = []
    for name, found in baselines.items():
        for run in found:
            if run.rows_scored() == wanted:
                kept.setdefault(name, []).append(run)
            else:
                notes.append(
                    f"{run.folder.name} is left out: it is of other data, other rows, other candidate pools, other "
                    f"cut-offs or another evaluate.level than {runs[0].folder.name}."
                )
    return kept, notes


def check_same_start(runs: Sequence[Finished]) -> None:
    """Refuse runs of objectives that do not share data, SIDs and the stages before `rl`."""
    first = runs[0]
    for run in runs[1:]:
        if run.stage == "rl" and (run.metrics["data"], run.shared) != (first.metrics["data"], first.shared):
            raise DataError(
                f"{run.folder} and {first.folder} do not share data, Semantic IDs, the stages before rl and "
                f"evaluation, so they cannot stand in one table. Put one of them into another experiment."
            )


def shared_by_all(runs: Sequence[Finished]) -> dict[str, Path]:
    """Each stage before `rl` that all runs of objectives share, and where its scores lie."""
    every = [run.shared for run in runs if run.stage == "rl"]
    return every[0] if every and all(shared == every[0] for shared in every) else {}


def describe(runs: Sequence[Finished]) -> Tree:
    """What all runs (of objectives, then of baselines) share: data, SIDs, versions, maybe stages before `rl`."""
    first = runs[0]
    path = first.folder / SIDS
    codes = load_file(path)["codes"].numpy().tobytes() if path.exists() else None
    return {
        "experiment": first.metrics["experiment"],
        "data": first.metrics["data"],
        "sid": {**first.metrics["sid"], "fingerprint": codes and hashlib.sha256(codes).hexdigest()[:16]},
        "shared": {stage: place.parent.name for stage, place in shared_by_all(runs).items()},
        "versions": read_json(first.folder / "versions.json"),
    }


def cold_rows(runs: Sequence[Finished], split: str) -> Tensor | None:
    """Which rows of a split have a cold target [R], alike in all runs that kept it; None if none did (old ones)."""
    known = [run for run in runs if f"cold/{split}" in run.ranks]
    for run in known[1:]:
        if not torch.equal(run.ranks[f"cold/{split}"], known[0].ranks[f"cold/{split}"]):
            raise DataError(
                f"{run.folder} and {known[0].folder} are not scored on the same {split} rows: other targets are cold. "
                f"Put one of them into another experiment."
            )
    return known[0].ranks[f"cold/{split}"].bool() if known else None


def row_facts(runs: Sequence[Finished], notes: Notes) -> Row:
    """What a row of the report is, from its runs and what the first of them noted."""
    first = runs[0]
    config, kind = first.config, "objective" if first.stage == "rl" else "baseline"
    options = dict(config.objective if kind == "objective" else config.baseline)
    about = {**dict.fromkeys(("name", "title", "paper"), ""), **first.metrics.get(kind, {})}
    name = options.pop("name")
    seeds, folders = [run.seed for run in runs], [run.folder.name for run in runs]
    row = Row(kind, about["name"], about["title"], about["paper"], options, seeds, folders)
    if kind == "baseline":
        return row
    pieces = repr(OBJECTIVES.build(name, options))
    return replace(row, pieces=pieces, rewards=config.rewards, spent=spent(first, notes))


def read_samples(folder: Path) -> list[Tree]:
    """Worked examples of a run's last rollout (see `genrl.training.samples`); none in a run of an older version."""
    lines = list(noted_lines(folder / "samples.jsonl"))
    found: list[Tree] = parsed(lines[-1][1])["samples"] if lines else []
    return found


def spent(run: Finished, notes: Notes) -> dict[str, int | None]:
    """Steps, prompts, completions and their tokens in stage `rl`, as `--budget` counts them.

    A run that the clock may have ended is as long as its notes. How long completions with thinking were is noted of
    some rollouts; the others are taken to be as long on average.
    """
    config = run.config
    steps = config.rl.max_steps
    if steps == UNLIMITED or "max_time" in config.trainer.extra:
        steps = max((max(values) for values in notes.values()), default=0)
    rollouts = -(-steps // (config.rollout.epochs * config.rollout.minibatches))
    prompts = rollouts * config.rollout.prompts
    fixed = [run.metrics["sid"]["levels"]] if config.layout["name"] == "sid" else []
    lengths = fixed or list(notes.get("rollout/length", {}).values())
    count = prompts * completions(config)
    tokens = round(count * statistics.mean(lengths)) if lengths else None
    return {"steps": steps, "prompts": prompts, "completions": count, "tokens": tokens}
