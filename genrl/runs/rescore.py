"""Score a finished run again, beside the data that it was made with."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.items import Catalog
from genrl.config.schema import RunConfig
from genrl.config.select import within
from genrl.errors import CheckpointError, ConfigError, DataError, unwritable
from genrl.files import read_json, read_weights
from genrl.given import reason
from genrl.manifest import METRICS, check, seal
from genrl.recommenders.base import WEIGHTS
from genrl.runs import tables
from genrl.runs.evaluate import SPLITS, evaluate
from genrl.runs.folder import owned
from genrl.runs.inputs import check_inputs
from genrl.runs.recommend import load_recommender, run_config
from genrl.runs.record import evaluation_name, references, score, written
from genrl.runs.session import Session
from genrl.training.fitting import quiet_libraries

_elsewhere: dict[Path, TemporaryDirectory[str]] = {}
"""Experiment that cannot be written to -> where its new scores lie while this process lives."""


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Session:
    """Load a finished run beside the data that it was made with.

    Catalogue, cold items and SIDs are those of the run. A data file that the overrides name may hold other rows of the
    same items.

    Raises:
        CheckpointError: as `load_recommender`, or if the data have changed.
        DataError: if other data hold other items.
    """
    config, recommender = load_recommender(folder, overrides)
    named = {word.partition("=")[0] for word in overrides}
    check_inputs(folder, config, [name for name in ("data.interactions", "data.items") if name not in named])
    dataset = _of_the_run(load_dataset(config.data), recommender.problem.dataset.catalog, folder)
    recommender.problem = replace(recommender.problem, dataset=dataset)
    config = replace(config, evaluate=within(config, len(dataset.catalog)))
    return Session(config, dataset, recommender.problem.table, recommender)


def _of_the_run(now: Dataset, catalog: Catalog, folder: Path) -> Dataset:
    """Rows of today with the items of a run, its training counts and its cold items."""
    if now.catalog.item_ids != catalog.item_ids:
        new, gone = set(now.catalog.item_ids) - set(catalog.item_ids), set(catalog.item_ids) - set(now.catalog.item_ids)
        raise DataError(
            f"{folder} knows {len(catalog):,} items; these data have {len(now.catalog):,}, {len(new):,} of them new "
            f"to it, and lack {len(gone):,} of its own. Score it on rows of the same items and with the options of "
            f"section data that it was trained with."
        )
    kept = replace(now.catalog, train_counts=catalog.train_counts, cold=catalog.cold)
    return Dataset(kept, now.sequences, now.name)


@dataclass(frozen=True)
class Record:
    """What a finished run scores under some options of evaluation."""

    config: RunConfig
    """The run's, with these options."""
    metrics: dict[str, Any]
    """As metrics.json of the run; the stages before the last and the reference lines are scored alike."""
    folder: Path
    """Where ranks.safetensors lies."""


def rescore(folder: Path, overrides: Sequence[str] = ()) -> Record:
    """Score a finished run and the stages before its last one again, on both splits, with other options of evaluation.

    What was scored is kept in `evaluation-<key of the options>`, inside the folder of the weights, and found there the
    next time; the run's own metrics.json and ranks stay as they are. Without a difference in the options these are the
    record. Where the experiment cannot be written to, scores are kept until this process ends, and a warning says so.

    Args:
        folder: of the run.
        overrides: `evaluate.option=value` texts.

    Raises:
        ConfigError: if another section than `evaluate` is changed.
        CheckpointError: as `load_run`, or if the weights of a stage are not there any more.
    """
    other = [word for word in overrides if not word.startswith("evaluate.")]
    if other:
        raise ConfigError(f"{', '.join(other)}: a finished run is scored again with options of section evaluate alone.")
    config, own = run_config(folder, overrides), run_config(folder)
    check(folder)
    metrics: dict[str, Any] = read_json(folder / METRICS)
    if config.evaluate == own.evaluate:
        return Record(config, metrics, folder)
    options = evaluation_name(config.evaluate)
    place = folder / options
    if not (place / METRICS).exists():
        rooms = _rooms(folder, *(_stage_folder(folder, cost) for cost in _shared(metrics).values()))
        place = rooms[folder] / options
        with owned(place.parent):
            if not (place / METRICS).exists():
                seal(place, _rescored(folder, overrides, metrics, rooms, options))
    check(place)
    return Record(config, read_json(place / METRICS), place)


def _rooms(*folders: Path) -> dict[Path, Path]:
    """Where scores of the weights in some folders are kept: in these, or all elsewhere if one cannot be written to."""
    try:
        for folder in folders:
            with owned(folder):
                pass
    except OSError as error:
        if unwritable(error) != "read-only":
            raise
        place = folders[0].resolve().parent
        if place not in _elsewhere:
            _elsewhere[place] = TemporaryDirectory(prefix="genrl-scores-")
            warnings.warn(f"scores are not kept: {getattr(error, 'filename', place)}: {reason(error)}.", stacklevel=2)
        return {folder: Path(_elsewhere[place].name) / folder.resolve().name for folder in folders}
    return {folder: folder for folder in folders}


def _rescored(
    folder: Path, overrides: Sequence[str], metrics: dict[str, Any], rooms: Mapping[Path, Path], options: str
) -> dict[str, Any]:
    """The metrics of a run under other options; ranks of it and of its stages are kept as `options` in their rooms."""
    session = load_run(folder, overrides)
    config = session.config
    stages: dict[str, Any] = {name: dict(cost) for name, cost in metrics["stages"].items()}
    results = {split: references(config, session.dataset, session.table.codes, split) for split in SPLITS}
    for name, cost in stages.items():
        if "evaluation" in cost:
            shared = _stage_folder(folder, cost)
            scores = shared / options
            if not (scores / METRICS).exists():
                scores = rooms[shared] / options
                with owned(scores.parent):
                    if not (scores / METRICS).exists():
                        seal(scores, score(_of_stage(session, folder, name, cost), name, scores))
            check(scores)
            cost["evaluation"] = str(scores)
            found = read_json(scores / METRICS)
        else:
            session.recommender.load_state(read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
            found = score(session, name, rooms[folder] / options)
        for split in SPLITS:
            results[split][name] = found[split]
    again = {**metrics, **results, "stages": stages}
    if len(stages) > 1:
        again["differences"] = tables.stage_differences(stages, rooms[folder] / options, config.evaluate.k)
    return again


def _shared(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Stages of a run that have folders of their own."""
    return {name: cost for name, cost in metrics["stages"].items() if "evaluation" in cost}


def _stage_folder(folder: Path, cost: dict[str, Any]) -> Path:
    """Where the weights of a shared stage lie: beside the run, wherever that is now."""
    return folder.parent / Path(cost["folder"]).name


def _of_stage(session: Session, folder: Path, name: str, cost: dict[str, Any]) -> Session:
    """The session of a run with the weights and the layout of one of its stages."""
    weights = _stage_folder(folder, cost) / WEIGHTS
    if weights.exists():
        check(weights.parent)
    else:
        raise CheckpointError(
            f"{weights} is missing, the weights of stage {name} that {folder.name} began with. Put the folder beside "
            f"the run, or run its stages again (command.txt)."
        )
    found = session.plain if name == "align" else session
    found.recommender.load_state(read_weights(weights), str(weights))
    return found


def evaluate_run(folder: Path, *, split: str, overrides: list[str], stages: Sequence[str] = ()) -> dict[str, Any]:
    """Score a finished run on a split and print the table; the run folder stays as it is.

    Args:
        folder: of the run, or of a stage that a finished run beside it has used.
        split: `valid` or `test`.
        overrides: `key=value` texts over the configuration of the run.
        stages: what of the run is scored; none stands for its last stage.

    Raises:
        CheckpointError: as `load_run`, or if no finished run has used the folder of a stage.
        ConfigError: if the run has no such stage.
    """
    quiet_libraries()
    folder, stages = _run_of(folder, stages)
    session = load_run(folder, overrides)
    config = session.config
    known = read_json(folder / METRICS).get("stages", {})
    unknown = [name for name in stages if name not in known]
    if unknown:
        raise ConfigError(f"{folder} has no stage {', '.join(unknown)}. Its stages: {', '.join(known)}.")
    results = references(config, session.dataset, session.table.codes, split)
    for name in stages or [folder.name]:
        shared = name in known and "evaluation" in known[name]
        scored = _of_stage(session, folder, name, known[name]) if shared else session
        if not shared and len(stages) > 1:
            session.recommender.load_state(read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
        results[name] = written(evaluate(scored.recommender, scored.batches(split), config.evaluate, split))
    tables.ranking_table(Console(), split, tables.with_ties(results), config.evaluate.k)
    return results


def _run_of(folder: Path, stages: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """A run and the stages to score: of the folder of a shared stage, a finished run beside it that has used it."""
    if (folder / "config.yaml").exists() or not (folder / WEIGHTS).exists():
        return folder, stages
    for path in sorted(folder.parent.glob("*-s*/metrics.json")):
        for name, cost in read_json(path)["stages"].items():
            if Path(cost["folder"]).name == folder.resolve().name:
                return path.parent, [name]
    raise CheckpointError(
        f"{folder} holds the weights of a stage, and no finished run beside it has used them: how they are to be read "
        f"is kept in the folder of a run. Finish one first: python -m genrl fit stages=[align] with the same options."
    )
