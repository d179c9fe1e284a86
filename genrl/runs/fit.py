"""Run the stages of a configuration and leave a run folder that explains itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from genrl.config.load import run_folder
from genrl.config.schema import RunConfig
from genrl.objectives import OBJECTIVES, Objective, Setting
from genrl.ops import world_rank, world_size
from genrl.policy.rollout import check_method, check_rollout
from genrl.rewards import RewardContext, Verifier, build_verifier
from genrl.sid.table import SidTable
from genrl.runs import tables as report
from genrl.training.activate import ActivateModule
from genrl.runs.baseline import fit_baseline
from genrl.training.board import write_outcome
from genrl.training.callbacks import BestWeights, RolloutSamples
from genrl.runs.folder import claim, is_finished, show_finished
from genrl.runs.evaluate import SPLITS, Evaluation, evaluate, ranking_metrics
from genrl.training.fitting import barrier, check_accelerator, find_rank, is_first, monitor, quiet_libraries, train
from genrl.files import Meter, key_of, locked, read_json, read_weights, write_json
from genrl.runs.record import references, save_ranks, written
from genrl.training.rl import RLModule
from genrl.runs.session import Session, sid_table
from genrl.training.sft import SFTModule
from genrl.runs.stages import thinks
from genrl.training.stream import PromptOrder


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
    if config.stages == ["baseline"]:
        return fit_baseline(config, resume=resume, command=command)
    quiet_libraries()
    check_accelerator(config.trainer)
    find_rank(config.trainer)
    console = Console(quiet=not is_first())
    objective = objective or build_objective(config)
    folder = run_folder(config)
    if is_finished(folder, config, resume):
        return show_finished(folder, console)
    _check_early(config)
    session = Session.build(config)
    report.header(console, config, session, objective)
    prepared = _prepare_rl(session, objective) if "rl" in config.stages else None
    if session.activates:
        _check_taught(session)
    with locked(folder) if is_first() else contextlib.nullcontext():
        if is_finished(folder, config, resume):  # by another process, while this one waited
            return show_finished(folder, console)
        if is_first():
            claim(folder, config, command)
        codes = session.table.codes
        results: dict[str, Any] = {"stages": {}}
        results |= {split: references(config, session.dataset, codes, split) for split in SPLITS}
        if "align" in config.stages:
            _align(session, results, console)
        if session.activates:
            _activate(session, results, console)
        if prepared is not None:
            _reinforce(session, objective, *prepared, folder, results, console)
        if is_first():
            _finish(session, folder, results, command)
            report.show(console, read_json(folder / "metrics.json"))
            report.places(console, {"run folder": folder, "curves": folder / "curves.png"})
    return folder


def _check_early(config: RunConfig) -> None:
    """Say what cannot be before data and model are loaded."""
    if "rl" in config.stages:
        check_method(config.rollout, thinking=thinks(config))


def build_objective(config: RunConfig) -> Objective:
    """The configured objective."""
    options = {name: value for name, value in config.objective.items() if name != "name"}
    return OBJECTIVES.build(config.objective["name"], options)


def make_verifier(session: Session, objective: Objective) -> Verifier:
    """The configured rewards, checked against what the objective needs before anything is trained."""
    config, catalog = session.config, session.dataset.catalog
    context = RewardContext.from_catalog(catalog, session.table.codes)
    verifier = build_verifier(config.rewards, context, thinking=session.layout.thinking)
    setting = Setting(
        rewards=tuple(verifier.rewards),
        step_rewards=bool(verifier.step_names),
        group_size=1 if objective.trains_on_targets else config.rollout.group_size,
        items=1,
        categories=bool(catalog.category_names),
        thinking=session.layout.thinking,
    )
    objective.check(setting, config.objective["name"])
    check_rollout(config.rollout, session.layout)
    return verifier


def _prepare_rl(session: Session, objective: Objective) -> tuple[Verifier, PromptOrder]:
    """What stage `rl` needs besides the policy, so that what is wrong with it is said before stage `align` trains."""
    config = session.config
    order = PromptOrder(session.prompt_positions(), config.rollout.prompts, config.seed)
    return make_verifier(session, objective), order


def _check_taught(session: Session) -> None:
    """Say what is wrong with what stage `activate` learns before stage `align` trains, unless it is learned already."""
    if not (_stage_folder(session.config, "activate", session.activate_key()) / "metrics.json").exists():
        session.activate_batches()


def _align(session: Session, results: dict[str, Any], console: Console) -> None:
    """Train or reuse stage `align` and leave its weights in the policy."""
    plain = session.plain

    def module(folder: Path) -> SFTModule:
        return SFTModule(session.packer(), session.config.align, **_stage_arguments(plain, folder))

    _supervise("align", session.align_key(), plain, module, session.config.align.patience, results, console)


def _activate(session: Session, results: dict[str, Any], console: Console) -> None:
    """Train or reuse stage `activate` and leave its weights in the policy."""

    def module(folder: Path) -> ActivateModule | SFTModule:
        batches = session.activate_batches()
        kind = ActivateModule if session.layout.thinking else SFTModule
        return kind(batches, session.config.activate, **_stage_arguments(session, folder))

    _supervise("activate", session.activate_key(), session, module, session.config.activate.patience, results, console)


def _supervise(
    name: str,
    key: str,
    session: Session,
    module_in: Callable[[Path], SFTModule | ActivateModule],
    patience: int,
    results: dict[str, Any],
    console: Console,
) -> None:
    """Train or reuse a supervised stage, which all runs of an experiment with the same key share."""
    config = session.config
    folder = _stage_folder(config, name, key)
    with locked(folder) if is_first() else contextlib.nullcontext():
        if not (folder / "metrics.json").exists():
            meter = Meter()
            module = module_in(folder)
            best = BestWeights(folder / "weights.safetensors", monitor(config), patience)
            train(name, module, folder, module.max_steps, best, config)
            training = meter.read()
            if is_first():
                write_json(folder / "metrics.json", {**training, "best_step": best.best_step, "folder": str(folder)})
            barrier()
        else:
            console.print(f"{name}: reusing {folder}")
        session.policy.load_state(read_weights(folder / "weights.safetensors"), str(folder))
        evaluation = folder / f"evaluation-{key_of(config.evaluate)}"
        if not (evaluation / "metrics.json").exists():
            scored = _score(session, console, name)
            if is_first():
                evaluation.mkdir(exist_ok=True)
                save_ranks(evaluation, scored, session.dataset, config.evaluate)
                write_json(evaluation / "metrics.json", {split: written(value) for split, value in scored.items()})
            barrier()
    results["stages"][name] = {**read_json(folder / "metrics.json"), "evaluation": str(evaluation)}
    for split, value in read_json(evaluation / "metrics.json").items():
        results[split][name] = value


def _stage_folder(config: RunConfig, name: str, key: str) -> Path:
    return Path(config.output) / config.experiment / f"{name}-{key}"


def _reinforce(
    session: Session,
    objective: Objective,
    verifier: Verifier,
    order: PromptOrder,
    folder: Path,
    results: dict[str, Any],
    console: Console,
) -> None:
    """Train the rl stage and leave its weights in the policy."""
    config = session.config
    meter = Meter()
    module = RLModule(
        objective,
        verifier,
        order,
        session.maker,
        session.dataset.catalog.categories,
        config.rl,
        config.rollout,
        config.seed,
        **_stage_arguments(session, folder),
    )
    best = BestWeights(folder / "weights.safetensors", monitor(config) if config.rl.select == "best" else None)
    samples = RolloutSamples(session.dataset.catalog, folder / "samples.jsonl")
    train("rl", module, folder, config.rl.max_steps, best, config, samples, start=config.rl.select == "best")
    training = meter.read()
    session.policy.load_state(read_weights(best.path), str(best.path))
    scored = _score(session, console, config.objective["name"])
    results["stages"]["rl"] = {**training, "best_step": best.best_step, "folder": str(folder)}
    for split, value in scored.items():
        results[split]["rl"] = written(value)
    if is_first():
        save_ranks(folder, scored, session.dataset, config.evaluate)


def _stage_arguments(session: Session, folder: Path) -> dict[str, Any]:
    config = session.config
    metrics = ranking_metrics(config.evaluate, session.dataset.catalog, session.table.codes)
    return {
        "policy": session.policy,
        "layout": session.layout,
        "validation": session.batches("valid"),
        "metrics": metrics,
        "evaluation": config.evaluate,
        "max_grad_norm": config.trainer.max_grad_norm,
        "folder": folder,
    }


def _score(session: Session, console: Console, name: str) -> dict[str, Evaluation]:
    """Final metrics on validation and test rows."""
    config = session.config.evaluate
    layout = session.layout.to(str(session.policy.device))
    with session.numerics():
        return {
            split: evaluate(
                session.policy,
                layout,
                session.batches(split).share(world_rank(), world_size()),
                config,
                session.dataset.catalog,
                f"{name} {split}",
            )
            for split in SPLITS
        }


def _finish(session: Session, folder: Path, results: dict[str, Any], command: str) -> None:
    """Write metrics.json and the curves; a run is finished when metrics.json is there."""
    config = session.config
    entry = OBJECTIVES.entry(config.objective["name"])
    begun = [name for name in ("align", "activate") if name in results["stages"]]
    if begun and "rl" in results["stages"]:
        start = Path(results["stages"][begun[-1]]["evaluation"])
        results["difference"] = report.paired_differences(start, folder, config.evaluate.k)
    report.curves(folder, f"{entry.name}, seed {config.seed}")
    metrics = {
        "name": config.name or entry.name,
        "objective": {"name": entry.name, "title": entry.title, "paper": entry.paper},
        "experiment": config.experiment,
        "seed": config.seed,
        "data": {"name": session.dataset.name, "fingerprint": session.dataset.fingerprint},
        "sid": {"levels": session.table.levels, "codes": list(session.table.codebook_sizes)},
        "command": command,
        **results,
    }
    write_outcome(folder, config, metrics)
    write_json(folder / "metrics.json", metrics)


def build_sids(config: RunConfig) -> SidTable:
    """Build (or find) the SID table of a configuration and return it with its report."""
    from genrl.catalog.dataset import load_dataset

    return sid_table(config, load_dataset(config.data))
