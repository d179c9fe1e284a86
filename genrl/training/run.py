"""Run the stages of a configuration and leave a run folder that explains itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from genrl.config.load import load_config, run_folder
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, UnsupportedError
from genrl.layouts.base import ThinkingLayout
from genrl.objectives import OBJECTIVES, Objective, check_needs
from genrl.ops import world_size
from genrl.policy.decode import rank
from genrl.policy.model import Policy
from genrl.policy.reasoning import Reasoned, read_blocks, reason
from genrl.policy.rollout import check_rollout
from genrl.rewards import RewardContext, Verifier, build_verifier
from genrl.sid.table import SidTable
from genrl.training import report
from genrl.training.activate import ActivateModule
from genrl.training.baseline import BaselineSession, fit_baseline, load_baseline
from genrl.training.board import write_outcome
from genrl.training.callbacks import BestWeights, RolloutSamples
from genrl.training.claim import claim, is_finished, show_finished
from genrl.training.contract import check_decoding, decoding
from genrl.training.evaluation import SPLITS, Evaluation, evaluate, ranking_metrics, thinking_noise
from genrl.training.fitting import barrier, monitor, process_rank, quiet_libraries, train
from genrl.training.folder import Meter, is_main_process, key_of, locked, read_json, read_weights, write_json
from genrl.training.outcome import references, save_ranks, written
from genrl.training.rl import RLModule
from genrl.training.session import Session, sid_table
from genrl.training.sft import SFTModule
from genrl.training.stream import PromptOrder
from genrl.types import Ranking


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
    console = Console(quiet=not is_main_process())
    quiet_libraries()
    objective = objective or build_objective(config)
    folder = run_folder(config)
    if is_finished(folder, config, resume):
        return show_finished(folder, console)
    session = Session.build(config)
    report.header(console, config, session, objective)
    prepared = _prepare_rl(session, objective) if "rl" in config.stages else None
    if "activate" in config.stages and session.layout.thinking:
        _check_traces(session)
    with locked(folder) if is_main_process() else contextlib.nullcontext():
        if is_finished(folder, config, resume):  # by another process, while this one waited
            return show_finished(folder, console)
        if is_main_process():
            claim(folder, config, command)
        codes = session.table.codes
        results: dict[str, Any] = {"stages": {}}
        results |= {split: references(config, session.dataset, codes, split) for split in SPLITS}
        if "align" in config.stages:
            _align(session, results, console)
        if "activate" in config.stages and session.layout.thinking:
            _activate(session, results, console)
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
    context = RewardContext.from_codes(session.table.codes, catalog.train_counts)
    verifier = build_verifier(config.rewards, context, thinking=session.layout.thinking)
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


def _check_traces(session: Session) -> None:
    """Say what is wrong with the traces before stage `align` trains, unless stage `activate` is finished already."""
    if not (_stage_folder(session.config, "activate", session.activate_key()) / "metrics.json").exists():
        session.trace_batches(0, 1)


def _align(session: Session, results: dict[str, Any], console: Console) -> None:
    """Train or reuse stage `align`, which knows no thinking, and leave its weights in the policy."""
    plain = replace(session, layout=session.layout.items)

    def module(folder: Path) -> SFTModule:
        packer = session.packer(process_rank(), session.config.trainer.devices)
        return SFTModule(packer, session.config.align, **_stage_arguments(plain, folder))

    _supervise("align", session.align_key(), plain, module, session.config.align.patience, results, console)


def _activate(session: Session, results: dict[str, Any], console: Console) -> None:
    """Train or reuse stage `activate` and leave its weights in the policy."""

    def module(folder: Path) -> ActivateModule:
        batches = session.trace_batches(process_rank(), session.config.trainer.devices)
        return ActivateModule(batches, session.config.activate, **_stage_arguments(session, folder))

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
    with locked(folder) if is_main_process() else contextlib.nullcontext():
        if not (folder / "metrics.json").exists():
            meter = Meter()
            module = module_in(folder)
            best = BestWeights(folder / "weights.safetensors", monitor(config), patience)
            train(name, module, folder, module.max_steps, best, config)
            training = meter.read()
            if is_main_process():
                write_json(folder / "metrics.json", {**training, "best_step": best.best_step, "folder": str(folder)})
            barrier()
        else:
            console.print(f"{name}: reusing {folder}")
        session.policy.load_state(read_weights(folder / "weights.safetensors"), str(folder))
        evaluation = folder / f"evaluation-{key_of(config.evaluate)}"
        if not (evaluation / "metrics.json").exists():
            scored = _score(session, console, name)
            if is_main_process():
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
    if is_main_process():
        save_ranks(folder, scored, session.dataset, config.evaluate)


def _stage_arguments(session: Session, folder: Path) -> dict[str, Any]:
    config = session.config
    metrics = ranking_metrics(config.evaluate, session.dataset.catalog, session.table.codes)
    validation = session.batches("valid", process_rank(), config.trainer.devices)
    return {
        "policy": session.policy,
        "layout": session.layout,
        "validation": validation,
        "metrics": metrics,
        "evaluation": config.evaluate,
        "max_grad_norm": config.trainer.max_grad_norm,
        "folder": folder,
    }


def _score(session: Session, console: Console, name: str) -> dict[str, Evaluation]:
    """Final metrics on validation and test rows."""
    config = session.config.evaluate
    layout = session.layout.to(str(session.policy.device))
    world = world_size()  # 1 until the first stage of this process has started the others
    with session.numerics():
        return {
            split: evaluate(
                session.policy,
                layout,
                session.batches(split, process_rank() if world > 1 else 0, world),
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


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Session | BaselineSession:
    """Rebuild a finished run, wherever its folder is now, with its trained weights.

    Raises:
        CheckpointError: if the folder is no run, or its weights are missing, damaged, of another model or to be
            decoded in another way.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder (no config.yaml there). Give runs/<experiment>/<objective>-s<seed>."
        )
    experiment = Path(load_config([folder / "config.yaml"]).experiment).parts
    depth = len(experiment)
    home = folder.resolve()
    flags = {}
    if home.parts[-1 - depth : -1] == experiment:  # its SID table lies beside it, wherever that is
        flags["output"] = str(home.parents[depth])
    config = load_config([folder / "config.yaml"], flags, list(overrides))
    if config.stages == ["baseline"]:
        return load_baseline(folder, config)
    session = Session.build(config)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        stages = read_json(folder / "metrics.json")["stages"]
        last = Path(stages["activate" if "activate" in stages else "align"]["folder"])
        weights = folder.parent / last.name / "weights.safetensors"
        if "activate" not in stages:
            session = replace(session, layout=session.layout.items)  # stage align knows no thinking
    for notice in check_decoding(weights, decoding(session.policy, session.layout, config.evaluate)):
        Console().print(notice)
    session.policy.load_state(read_weights(weights), str(weights))
    return session


def evaluate_run(folder: Path, *, split: str, overrides: list[str]) -> dict[str, Any]:
    """Score a finished run on a split and print the table; the run folder stays as it is."""
    quiet_libraries()
    session = load_run(folder, overrides)
    config = session.config
    if isinstance(session, Session):
        layout, rows = session.layout.to(str(session.policy.device)), session.batches(split)
        with session.numerics():
            scored = evaluate(session.policy, layout, rows, config.evaluate, session.dataset.catalog, split)
    else:
        scored = session.evaluate((split,))[split]
    lines = references(config, session.dataset, session.table.codes, split)
    results = {**lines, folder.name: written(scored)}
    report.ranking_table(Console(), split, results, config.evaluate.k)
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
        For each history: (item id, title, score), best first; fewer than `top` where fewer are allowed. The score is
        a log-probability, or what a baseline calls its score.

    Raises:
        DataError: if no item is allowed, or a name is not in the catalogue.
        UnsupportedError: if `exact` is asked of a baseline that searches with a beam, or of several trains of thought.
    """
    quiet_libraries()
    return _recommend(load_run(folder), histories, top, exclude_seen, only, cold, exact)[0]


def recommend_with_thinking(
    folder: Path,
    histories: list[list[str]],
    top: int,
    *,
    exclude_seen: bool = False,
    only: list[str] | None = None,
    cold: bool = False,
    exact: bool = False,
) -> tuple[list[list[tuple[str, str, float]]], list[list[str]]]:
    """As `recommend`, with the thinking that led to the first item of each history.

    Returns:
        what `recommend` returns; for each history the text of its think blocks.

    Raises:
        UnsupportedError: if the run does not think, besides the reasons that `recommend` has.
    """
    quiet_libraries()
    session = load_run(folder)
    if not isinstance(session, Session) or not session.layout.thinking:
        raise UnsupportedError(
            f"{folder} writes no thinking that could be shown: its items are named at once. Leave --show-thinking out, "
            f"or train with layout=blocked and stage activate."
        )
    return _recommend(session, histories, top, exclude_seen, only, cold, exact)


def _recommend(
    session: Session | BaselineSession,
    histories: list[list[str]],
    top: int,
    exclude_seen: bool,
    only: list[str] | None,
    cold: bool,
    exact: bool,
) -> tuple[list[list[tuple[str, str, float]]], list[list[str]]]:
    """Items and, of a policy that thinks, the text of the think blocks; see `recommend`."""
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
    allowed = catalog.cold.clone() if cold else torch.ones(len(catalog), dtype=torch.bool)
    if only is not None:
        allowed &= torch.zeros_like(allowed).index_fill(0, torch.tensor([find(name) for name in only]).long(), True)
    blocks: list[list[str]] = []
    if isinstance(session, Session):
        ranking, blocks = _rank(session, seen, allowed, top, exclude_seen, exact)
    else:
        ranking = session.recommend(seen, allowed, top, exclude_seen, exact)
    items = [
        [
            (catalog.item_ids[item], catalog.titles[item], score)
            for item, score in zip(items[:top], scores[:top], strict=True)
            if item >= 0
        ]
        for items, scores in zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True)
    ]
    return items, blocks


def _rank(
    session: Session, seen: Tensor, allowed: Tensor, top: int, exclude_seen: bool, exact: bool
) -> tuple[Ranking, list[list[str]]]:
    """Rank the allowed items [I] for histories [P, H], and say what was thought."""
    policy, config = session.policy, session.config.evaluate
    tokens, mask = session.maker.template.render(seen[:, -session.config.data.max_history :])
    tokens, mask = tokens.to(policy.device), mask.to(policy.device)
    layout = session.layout if bool(allowed.all()) else session.layout.only(allowed)
    if exclude_seen:
        layout = layout.filtered(deny=seen)
    layout = layout.to(str(policy.device))
    policy.eval()
    beam, first = max(config.beam, top), top if exact else 0
    with session.numerics():
        if not isinstance(layout, ThinkingLayout):
            return rank(policy, layout, tokens, mask, beam, exact=first).to("cpu"), []
        noise = thinking_noise(layout, tokens, mask, config)
        warmth = config.thinking_temperature
        found = reason(policy, layout, tokens, mask, beam, uniforms=noise, temperature=warmth, exact=first)
    return found.ranking.to("cpu"), _texts(policy, found)


def _texts(policy: Policy, found: Reasoned) -> list[list[str]]:
    """Text of each think block of the thinking that makes the first item of each prompt likeliest."""
    assert policy.words is not None
    written = [read_blocks(policy.words, tokens) for tokens in found.shown()]
    return [[policy.tokenizer.decode(block).strip() for block in blocks] for blocks in written]


def build_sids(config: RunConfig) -> SidTable:
    """Build (or find) the SID table of a configuration and return it with its report."""
    from genrl.catalog.dataset import load_dataset

    return sid_table(config, load_dataset(config.data))
