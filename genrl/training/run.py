"""Run the stages of a configuration and leave a run folder that explains itself."""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from genrl.baselines.reference import reference_lines
from genrl.catalog.sequences import Role
from genrl.config.load import load_config, run_folder, save_config
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.objectives import OBJECTIVES, Objective, check_needs
from genrl.ops import world_size
from genrl.policy.decode import rank
from genrl.policy.rollout import check_rollout
from genrl.rewards import RewardContext, Verifier, build_verifier
from genrl.sid.table import SidTable
from genrl.training import report
from genrl.training.callbacks import BestWeights, History, ResumePoint, RolloutSamples, StageProgress
from genrl.training.evaluation import Evaluation, evaluate, ranking_metrics
from genrl.training.folder import (
    UNIMPORTANT,
    Meter,
    is_main_process,
    key_of,
    locked,
    read_json,
    read_weights,
    rounded,
    versions,
    write_json,
)
from genrl.training.rl import RLModule, micro_batches
from genrl.training.session import Session, sid_table
from genrl.training.sft import SFTModule
from genrl.training.stage import StageModule
from genrl.training.stream import PromptOrder

STAGES = ("align", "rl")
SPLITS = {"valid": Role.VALID, "test": Role.TEST}


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
    console = Console(quiet=not is_main_process())
    _quiet_libraries()
    objective = objective or build_objective(config)
    folder = run_folder(config)
    if _finished(folder, config, resume):
        return _show_finished(folder, console)
    session = Session.build(config)
    report.header(console, config, session, objective)
    prepared = _prepare_rl(session, objective) if "rl" in config.stages else None
    with locked(folder) if is_main_process() else contextlib.nullcontext():
        if _finished(folder, config, resume):  # by another process, while this one waited
            return _show_finished(folder, console)
        if is_main_process():
            _claim(folder, config, command)
        results: dict[str, Any] = {"stages": {}, **{split: _references(session, split) for split in SPLITS}}
        if "align" in config.stages:
            _align(session, results, console)
        if prepared is not None:
            _reinforce(session, objective, *prepared, folder, results, console)
        if is_main_process():
            _finish(session, folder, results, command)
            report.show(console, read_json(folder / "metrics.json"))
            console.print(
                f"run folder: {folder}   curves: {folder / 'curves.png'}   tensorboard --logdir {folder.parent}"
            )
    return folder


def build_objective(config: RunConfig) -> Objective:
    """The configured objective."""
    options = {name: value for name, value in config.objective.items() if name != "name"}
    return OBJECTIVES.build(config.objective["name"], options)


def make_verifier(session: Session, objective: Objective) -> Verifier:
    """The configured rewards, checked against what the objective needs before anything is trained."""
    config, catalog = session.config, session.dataset.catalog
    verifier = build_verifier(config.rewards, RewardContext.from_codes(session.table.codes, catalog.train_counts))
    check_needs(
        config.objective["name"],
        objective,
        step_rewards=bool(verifier.step_names),
        components=tuple(verifier.rewards),
        group_size=1 if "targets" in objective.needs else config.rollout.group_size,
        items=1,
        categories=bool(catalog.category_names),
        thinking=session.layout.thinking,
    )
    check_rollout(config.rollout, session.layout)
    return verifier


def _prepare_rl(session: Session, objective: Objective) -> tuple[Verifier, PromptOrder]:
    """What stage `rl` needs besides the policy, so that what is wrong with it is said before stage `align` trains."""
    config = session.config
    order = PromptOrder(session.prompt_positions(), config.rollout.prompts, config.seed)
    return make_verifier(session, objective), order


def _finished(folder: Path, config: RunConfig, resume: bool) -> bool:
    """Whether the run folder holds this very run, finished; writes nothing.

    Raises:
        ConfigError: if it holds another configuration, or an unfinished run that is not to be resumed.
    """
    saved = folder / "config.yaml"
    if not is_main_process() or not saved.exists():
        return False
    changed = _differences(saved, config)
    if changed:
        raise ConfigError(
            f"{folder} already holds another configuration; it differs in {', '.join(changed)}. Nothing was "
            f"written. Choose another experiment=NAME or seed=N, or remove the folder."
        )
    if (folder / "metrics.json").exists():
        return True
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run of this configuration. Add --resume to go on with it, or remove the "
            f"folder."
        )
    return False


def _show_finished(folder: Path, console: Console) -> Path:
    console.print(f"[bold]{folder} is finished already.[/] Remove it, or change experiment or seed, to run it again.")
    report.show(console, read_json(folder / "metrics.json"))
    return folder


def _claim(folder: Path, config: RunConfig, command: str) -> None:
    """Make an empty run folder ours; config.yaml comes last, so that a folder with it is whole."""
    saved = folder / "config.yaml"
    if saved.exists():
        return
    write_json(folder / "versions.json", versions())
    (folder / "command.txt").write_text(
        f"{command or 'started from Python'}\n# the same run again, elsewhere:\n"
        f"python -m genrl fit --config {saved} output=runs-again\n"
    )
    save_config(config, saved)


def _differences(saved: Path, config: RunConfig) -> list[str]:
    """Dotted names of what differs between a saved configuration and this one."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(saved))
    except Exception as error:
        raise CheckpointError(
            f"{saved} is damaged ({type(error).__name__}). Remove the folder and run again."
        ) from error
    now = OmegaConf.to_container(OmegaConf.create(asdict(config)))
    before, after = _flat(values), _flat(now)
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name) and name not in UNIMPORTANT]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 (nested plain values)
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return {name: value for name, value in found.items() if value is not None}


def _align(session: Session, results: dict[str, Any], console: Console) -> None:
    """Train or reuse the align stage and leave its weights in the policy."""
    config = session.config
    folder = Path(config.output) / config.experiment / f"align-{session.align_key()}"
    with locked(folder) if is_main_process() else contextlib.nullcontext():
        if not (folder / "metrics.json").exists():
            meter = Meter()
            world = config.trainer.devices
            module = SFTModule(
                session.packer(_rank(), world),
                config.align,
                policy=session.policy,
                layout=session.layout,
                **_stage_arguments(session, folder),
            )
            best = BestWeights(folder / "weights.safetensors", _monitor(config), config.align.patience)
            _train("align", module, folder, module.max_steps, best, config)
            training = meter.read()
            if is_main_process():
                write_json(folder / "metrics.json", {**training, "best_step": best.best_step, "folder": str(folder)})
            _barrier()
        else:
            console.print(f"align: reusing {folder}")
        session.policy.load_state(read_weights(folder / "weights.safetensors"), str(folder))
        evaluation = folder / f"evaluation-{key_of(config.evaluate)}"
        if not (evaluation / "metrics.json").exists():
            scored = _score(session, console, "align")
            if is_main_process():
                evaluation.mkdir(exist_ok=True)
                _save_ranks(session, evaluation, scored)
                write_json(evaluation / "metrics.json", {split: _written(value) for split, value in scored.items()})
            _barrier()
    results["stages"]["align"] = {**read_json(folder / "metrics.json"), "evaluation": str(evaluation)}
    for split, value in read_json(evaluation / "metrics.json").items():
        results[split]["align"] = value


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
        policy=session.policy,
        layout=session.layout,
        **_stage_arguments(session, folder),
    )
    best = BestWeights(folder / "weights.safetensors", _monitor(config) if config.rl.select == "best" else None)
    samples = RolloutSamples(session.dataset.catalog, folder / "samples.jsonl")
    _train("rl", module, folder, config.rl.max_steps, best, config, samples, start=config.rl.select == "best")
    training = meter.read()
    session.policy.load_state(read_weights(best.path), str(best.path))
    scored = _score(session, console, config.objective["name"])
    results["stages"]["rl"] = {**training, "best_step": best.best_step, "folder": str(folder)}
    for split, value in scored.items():
        results[split]["rl"] = _written(value)
    if is_main_process():
        _save_ranks(session, folder, scored)


def _stage_arguments(session: Session, folder: Path) -> dict[str, Any]:
    config = session.config
    metrics = ranking_metrics(config.evaluate, session.dataset.catalog, session.table.codes)
    validation = session.batches(Role.VALID, config.evaluate.valid_users, _rank(), config.trainer.devices)
    return {
        "validation": validation,
        "metrics": metrics,
        "beam": config.evaluate.beam,
        "max_grad_norm": config.trainer.max_grad_norm,
        "folder": folder,
    }


def _train(
    name: str,
    module: StageModule,
    folder: Path,
    max_steps: int,
    best: BestWeights,
    config: RunConfig,
    *callbacks: L.Callback,
    start: bool = False,
) -> None:
    """One Lightning run over a stage, from its last checkpoint if there is one.

    With `start` the untrained stage is validated too, so that "best" can be the weights it began with.
    """
    settings = config.trainer
    point = ResumePoint(folder / "last.ckpt")
    options: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "strategy": "ddp" if settings.devices > 1 and settings.strategy == "auto" else settings.strategy,
        "precision": settings.precision,
        "max_steps": max_steps,
        "max_epochs": -1,
        "logger": TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False),
        "callbacks": [
            best,
            StageProgress(name, max_steps),
            History(folder / "history.jsonl", settings.log_every),
            *callbacks,
            point,
        ],
        "log_every_n_steps": settings.log_every,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        **settings.extra,
    }
    trainer = L.Trainer(**options)
    if isinstance(module, RLModule):
        trainer.accumulate_grad_batches = micro_batches(config.rollout, trainer.world_size)
        if is_main_process():
            trainer.logger.experiment.add_text("objective", f"```\n{module.objective!r}\n```")  # type: ignore[union-attr]
            trainer.logger.experiment.add_text("config", f"```yaml\n{OmegaConf.to_yaml(asdict(config))}\n```")  # type: ignore[union-attr]
    if point.path.exists():
        try:
            trainer.fit(module, ckpt_path=point.path, weights_only=True)
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, KeyError) as error:
            if module.global_step:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{point.path} is truncated, damaged or of another version ({reason}). "
                f"Remove it to start the stage again."
            ) from error
        return
    if is_main_process():
        for name in ("history.jsonl", "samples.jsonl"):
            (folder / name).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    if start:
        trainer.validate(module, verbose=False)
    trainer.fit(module)


def _score(session: Session, console: Console, name: str) -> dict[str, Evaluation]:
    """Final metrics on validation and test rows."""
    config = session.config.evaluate
    limits = {"valid": config.valid_users, "test": config.test_users}
    layout = session.layout.to(str(session.policy.device))
    world = world_size()  # 1 until the first stage of this process has started the others
    with session.numerics():
        return {
            split: evaluate(
                session.policy,
                layout,
                session.batches(role, limits[split], _rank() if world > 1 else 0, world),
                config,
                session.dataset.catalog,
                f"{name} {split}",
            )
            for split, role in SPLITS.items()
        }


def _references(session: Session, split: str) -> dict[str, Any]:
    """Metrics of the reference lines, computed once per experiment."""
    config = session.config
    limit = {"valid": config.evaluate.valid_users, "test": config.evaluate.test_users}[split]
    key = key_of(
        session.dataset.fingerprint,
        split,
        limit,
        config.evaluate.k,
        config.evaluate.level,
        session.table.codes.tolist(),
    )
    path = Path(config.output) / config.experiment / f"reference-{split}-{key}.json"
    if not path.exists():
        if not is_main_process():
            return {}
        positions = session.rows(SPLITS[split], limit)
        sequences = session.dataset.sequences
        longest = int((positions - sequences.offsets[sequences.users(positions)]).max())
        lines = reference_lines(
            session.dataset,
            SPLITS[split],
            config.evaluate.k,
            history_length=max(longest, 1),
            positions=positions,
            codes=session.table.codes,
            level=config.evaluate.level,
        )
        names = [name for name in lines if "/" not in name]
        write_json(
            path,
            {n: {"raw": rounded(lines[n]), "excluded": rounded(lines[f"{n}/history_excluded"])} for n in names},
        )
    return dict(read_json(path))


def _finish(session: Session, folder: Path, results: dict[str, Any], command: str) -> None:
    """Write metrics.json and the curves; a run is finished when metrics.json is there."""
    config = session.config
    entry = OBJECTIVES.entry(config.objective["name"])
    align = results["stages"].get("align", {}).get("evaluation")
    if align and "rl" in results["stages"]:
        results["difference"] = report.paired_differences(Path(align), folder, config.evaluate.k)
    report.curves(folder, f"{entry.name}, seed {config.seed}")
    write_json(
        folder / "metrics.json",
        {
            "name": config.name or entry.name,
            "objective": {"name": entry.name, "title": entry.title, "paper": entry.paper},
            "experiment": config.experiment,
            "seed": config.seed,
            "data": {"name": session.dataset.name, "fingerprint": session.dataset.fingerprint},
            "sid": {"levels": session.table.levels, "codes": list(session.table.codebook_sizes)},
            "command": command,
            **results,
        },
    )


def _written(value: Evaluation) -> dict[str, dict[str, float | None]]:
    return {"raw": rounded(value.raw), "excluded": rounded(value.excluded)}


def _save_ranks(session: Session, folder: Path, scored: dict[str, Evaluation]) -> None:
    """Keep the place of every row's target and which targets are cold, for paired comparisons."""
    ranks = {f"{split}/{kind}": rank for split, value in scored.items() for kind, rank in value.ranks.items()}
    cold, items = session.dataset.catalog.cold, session.dataset.sequences.items
    for split in scored:
        ranks[f"cold/{split}"] = cold[items[_evaluated(session, split)]].to(torch.uint8)
    temporary = folder / ".ranks.writing"
    save_file(ranks, temporary)
    temporary.replace(folder / "ranks.safetensors")


def _evaluated(session: Session, split: str) -> Tensor:
    """Positions that the tables of a split are about."""
    config = session.config.evaluate
    return session.rows(SPLITS[split], {"valid": config.valid_users, "test": config.test_users}[split])


def _monitor(config: RunConfig) -> str:
    return f"val/ndcg@{max(config.evaluate.k)}"


def _rank() -> int:
    """This process among those of the run; before they are connected, what the launcher told it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()  # Lightning forgets the variables below when a stage ends
    import os

    return int(os.environ.get("LOCAL_RANK", "0")) if "WORLD_SIZE" in os.environ else 0


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _quiet_libraries() -> None:
    """Silence messages of libraries that a user of genrl can do nothing about."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*`IterableDataset`.*",
        ".*Trying to infer the `batch_size`.*",
        ".*litlogger.*",
        ".*isinstance.treespec.*",
        ".*module.s. in eval mode.*",
        ".*across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def load_run(folder: Path, overrides: Iterator[str] | list[str] = ()) -> Session:  # type: ignore[assignment]
    """Rebuild a finished run with its trained weights.

    Raises:
        CheckpointError: if the folder is no run, or its weights are missing, damaged or of another model.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder (no config.yaml there). Give runs/<experiment>/<objective>-s<seed>."
        )
    config = load_config([folder / "config.yaml"])
    depth = len(Path(config.experiment).parts)
    home = folder.resolve()
    flags = {}
    if home.parts[-1 - depth : -1] == Path(config.experiment).parts:  # its SID table lies beside it, wherever that is
        flags["output"] = str(home.parents[depth])
    session = Session.build(load_config([folder / "config.yaml"], flags, list(overrides)))
    weights = folder / "weights.safetensors"
    if not weights.exists():
        align = Path(read_json(folder / "metrics.json")["stages"]["align"]["folder"])
        weights = folder.parent / align.name / "weights.safetensors"
    session.policy.load_state(read_weights(weights), str(weights))
    return session


def evaluate_run(folder: Path, *, split: str, overrides: list[str]) -> dict[str, Any]:
    """Score a finished run on a split and print the table; the run folder stays as it is."""
    _quiet_libraries()
    session = load_run(folder, overrides)
    config = session.config.evaluate
    limit = {"valid": config.valid_users, "test": config.test_users}[split]
    layout = session.layout.to(str(session.policy.device))
    rows = session.batches(SPLITS[split], limit)
    with session.numerics():
        scored = evaluate(session.policy, layout, rows, config, session.dataset.catalog, split)
    results = {**_references(session, split), folder.name: _written(scored)}
    report.ranking_table(Console(), split, results, config.k)
    return results


def recommend(
    folder: Path,
    histories: list[list[str]],
    top: int,
    *,
    exclude_seen: bool = False,
    only: list[str] | None = None,
    cold: bool = False,
    exact: bool = False,
) -> list[list[tuple[str, str, float]]]:
    """The best items for histories given as item ids or titles, oldest first.

    Args:
        folder: of a finished run.
        histories: item ids or titles.
        top: items for each history.
        exclude_seen: leave out the items of the history.
        only: item ids or titles that may be recommended (in stock, say); None: all.
        cold: recommend cold items only.
        exact: search until the list is provably the best of all allowed items.

    Returns:
        For each history: (item id, title, log-probability), best first; fewer than `top` where fewer are allowed.

    Raises:
        DataError: if no item is allowed, or a name is not in the catalogue.
    """
    _quiet_libraries()
    session = load_run(folder)
    catalog = session.dataset.catalog
    titles = {title: row for row, title in enumerate(catalog.titles) if title}

    def find(name: str) -> int:
        return titles[name] if name in titles else catalog.row(name)

    rows = [[find(name) for name in history] for history in histories]
    width = max((len(history) for history in rows), default=0) or 1
    seen = torch.full((len(rows), width), -1)
    for place, history in enumerate(rows):
        if history:
            seen[place, width - len(history) :] = torch.tensor(history)
    tokens, mask = session.maker.template.render(seen[:, -session.config.data.max_history :])
    device = session.policy.device
    layout = session.layout
    allowed = catalog.cold.clone() if cold else torch.ones(len(catalog), dtype=torch.bool)
    if only is not None:
        allowed &= torch.zeros_like(allowed).index_fill(0, torch.tensor([find(name) for name in only]).long(), True)
    if not bool(allowed.all()):
        layout = layout.only(allowed)
    if exclude_seen:
        layout = layout.filtered(deny=seen)
    session.policy.eval()
    beam = max(session.config.evaluate.beam, top)
    with session.numerics():
        ranking = rank(
            session.policy,
            layout.to(str(device)),
            tokens.to(device),
            mask.to(device),
            beam,
            exact=top if exact else 0,
        ).to("cpu")
    return [
        [
            (catalog.item_ids[item], catalog.titles[item], score)
            for item, score in zip(items[:top], scores[:top], strict=True)
            if item >= 0
        ]
        for items, scores in zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True)
    ]


def build_sids(config: RunConfig) -> SidTable:
    """Build (or find) the SID table of a configuration and return it with its report."""
    from genrl.catalog.dataset import load_dataset

    return sid_table(config, load_dataset(config.data))
