"""Run the stages of a configuration and leave a run folder that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from genrl.config.load import run_folder
from genrl.config.schema import RunConfig
from genrl.files import read_json
from genrl.layouts import thinks
from genrl.manifest import check, seal
from genrl.objectives import OBJECTIVES, Objective
from genrl.policy.rollout import check_method
from genrl.recommenders import BASELINES
from genrl.runs import tables
from genrl.runs.evaluate import SPLITS, check_reached
from genrl.runs.folder import claim, is_finished, lasting, writing
from genrl.runs.plan import plan
from genrl.runs.record import references
from genrl.runs.session import Session, sid_table
from genrl.runs.stage import Stage, build_objective, held, run_stage, stages_of
from genrl.sid.table import SidTable
from genrl.terminal import verbatim
from genrl.training.board import write_outcome
from genrl.training.fitting import check_installed, find_rank, is_first, quiet_libraries
from genrl.training.peers import together


def fit(config: RunConfig, *, resume: bool = False, command: str = "", objective: Objective | None = None) -> Path:
    """Run the stages of a configuration in order; finished stages are reused.

    Args:
        config: a checked configuration.
        resume: go on with an unfinished run of the same configuration.
        command: how the run was started, kept in its folder.
        objective: use this object instead of building the configured one (the third door for custom objectives).

    Returns:
        The run folder.

    Raises:
        ConfigError: if the folder holds another configuration, or an unfinished run and `resume` is not set.
    """
    quiet_libraries()
    check_installed(config)
    find_rank(config.trainer)
    folder = run_folder(config)
    with writing(folder):
        _fit(config, folder, resume=resume, command=command, objective=objective)
    return folder


def _fit(config: RunConfig, folder: Path, *, resume: bool, command: str, objective: Objective | None) -> None:
    console = Console(quiet=not is_first())
    if is_finished(folder, config, resume):
        _show_finished(folder, console)
        return
    learns = config.stages != ["baseline"]
    objective = (objective or build_objective(config)) if learns else None
    if "rl" in config.stages:
        check_method(config.rollout, thinking=thinks(config))
    session = Session.build(config)
    tables.header(console, session, objective)
    _tell_memory(console, session, objective)
    for split in SPLITS:
        check_reached(session.batches(split))
    stages = stages_of(session, objective)
    with held(folder):
        if is_finished(folder, config, resume):  # by another process, while this one waited
            _show_finished(folder, console)
            return
        if is_first():
            claim(folder, config, command)
        with lasting(folder):
            _run(session, stages, folder, console, command)


def _run(session: Session, stages: Sequence[Stage], folder: Path, console: Console, command: str) -> None:
    """Make the stages in their order and finish the folder."""
    results: dict[str, Any] = {"stages": {}}
    results |= {split: references(session.config, session.dataset, session.table.codes, split) for split in SPLITS}
    with together():
        for stage in stages:
            found = run_stage(stage, console, last=stage is stages[-1])
            results["stages"][stage.name] = found["stage"]
            for split in SPLITS:
                results[split][stage.name] = found[split]
            if stage is not stages[-1]:
                stage.session.learner.forget()  # the next stage makes a policy of its own
    if is_first():
        stages[-1].session.recommender.save(folder)
        _finish(session, folder, results, command)
        tables.show(console, read_json(folder / "metrics.json"))
        drawn = {"curves": folder / "curves.png"} if (folder / "curves.png").exists() else {}
        tables.places(console, {"run folder": folder, **drawn})


def _tell_memory(console: Console, session: Session, objective: Objective | None) -> None:
    """Say what memory a run of a language model from a folder will need; one that genrl makes is small beside it."""
    if objective is not None and not session.config.model.from_scratch and is_first():
        for line in plan(session, objective).lines():
            console.print(verbatim(line), soft_wrap=True)


def _show_finished(folder: Path, console: Console) -> None:
    """Show the tables of a run that need not be made again."""
    check(folder)
    finished = verbatim(f"{folder} is finished already.", "bold")
    console.print(finished, "Remove it, or change experiment or seed, to run it again.", soft_wrap=True)
    tables.show(console, read_json(folder / "metrics.json"))


def _finish(session: Session, folder: Path, results: dict[str, Any], command: str) -> None:
    """Write metrics.json and the curves; a run is finished when metrics.json is there."""
    config, stages = session.config, results["stages"]
    kind, registry = ("baseline", BASELINES) if "baseline" in stages else ("objective", OBJECTIVES)
    entry = registry.entry(getattr(config, kind)["name"])
    if len(stages) > 1:
        results["differences"] = tables.stage_differences(stages, folder, config.evaluate.k)
    tables.curves(folder, f"{entry.name}, seed {config.seed}")
    metrics = {
        "name": config.name or entry.name,
        kind: {"name": entry.name, "title": entry.title, "paper": entry.paper},
        "experiment": config.experiment,
        "seed": config.seed,
        "data": {"name": session.dataset.name, "fingerprint": session.dataset.fingerprint, **_pool(config)},
        "sid": {"levels": session.table.levels, "codes": list(session.table.codebook_sizes)},
        "command": command,
        **results,
    }
    write_outcome(folder, config, metrics)
    seal(folder, metrics)


def _pool(config: RunConfig) -> dict[str, Any]:
    """The candidate pools that a run is about, where it has some: runs of others are not compared with it."""
    return {} if config.data.pool.size is None else {"pool": asdict(config.data.pool)}


def build_sids(config: RunConfig) -> SidTable:
    """Build (or find) the SID table of a configuration and return it with its report."""
    from genrl.catalog.dataset import load_dataset

    return sid_table(config, load_dataset(config.data))
