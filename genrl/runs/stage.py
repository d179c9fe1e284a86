"""A stage as a value: its name, where it is kept under a key of all that it depends on, and what trains it."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from rich.console import Console

from genrl.catalog.items import Catalog
from genrl.config import RunConfig, run_folder
from genrl.config.load import experiment_folder
from genrl.config.schema import ModelConfig, SupervisedConfig
from genrl.config.select import validating
from genrl.errors import ComponentError
from genrl.files import read_json, read_weights
from genrl.foreign import described
from genrl.manifest import METRICS, check, seal
from genrl.objectives import OBJECTIVES, Objective, Setting
from genrl.policy.information import check_tells
from genrl.policy.rollout import check_rollout
from genrl.prompts.packing import SequenceBatches
from genrl.recommenders import TrainedBaseline
from genrl.recommenders.base import WEIGHTS
from genrl.rewards import RewardContext, Verifier, build_verifier
from genrl.runs.evaluate import ranking_metrics
from genrl.runs.folder import owned
from genrl.runs.record import Meter, evaluation_name, score
from genrl.runs.session import Session
from genrl.runs.stages import supervised_stages
from genrl.terminal import verbatim
from genrl.training.activate import ActivateModule, forgotten
from genrl.training.baseline import BaselineModule
from genrl.training.callbacks import BestWeights, RolloutSamples
from genrl.training.fitting import barrier, is_first, monitor, train
from genrl.training.learned import Learned
from genrl.training.rl import RLModule
from genrl.training.sft import ItemSFTModule, SFTModule, SupervisedModule
from genrl.training.stage import StageModule
from genrl.training.stream import PromptOrder

ConfigT = TypeVar("ConfigT", bound=SupervisedConfig)


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    title: str
    """What its bars are called."""
    folder: Path
    """Where its weights and notes lie; of a shared stage it is named by the key of all that the stage depends on."""
    session: Session
    module: Callable[[], SupervisedModule | RLModule | BaselineModule] | None
    """Makes what is trained; None: there is nothing to train."""
    monitor: str | None
    """Validation metric that chooses the weights; None: the latest are taken."""
    patience: int = 0
    """Validations without a better value before training stops; 0 never stops early."""
    shared: bool = True
    """Whether all runs of the experiment with the same key use it; otherwise it is a run's own."""
    start: bool = False
    """Whether the weights that it begins with may be the best."""
    callbacks: tuple[L.Callback, ...] = ()
    judge: Callable[[], str] | None = None
    """What is to be said of the stage once it is trained; an empty text says nothing."""
    note: Callable[[], str] | None = None
    """What is to be said of it before it is trained."""

    @property
    def finished(self) -> bool:
        """Whether a shared stage need not be trained again."""
        return self.shared and (self.folder / METRICS).exists()


def run_stage(stage: Stage, console: Console, *, last: bool) -> dict[str, Any]:
    """Train or reuse a stage and score it; the recommender holds the weights of the `last` stage afterwards.

    Returns:
        `stage`: cost, best step and folder; `valid` and `test`: the metrics.
    """
    with held(stage.folder) if stage.shared else contextlib.nullcontext():
        if stage.finished:
            check(stage.folder)
            console.print(verbatim(f"{stage.name}: reusing {stage.folder}"), soft_wrap=True)
            cost = read_json(stage.folder / METRICS)
        else:
            if stage.note is not None and (said := stage.note()):
                console.print(verbatim(said))
            cost = _train(stage)
        if not stage.shared:
            return {"stage": cost, **_scored(stage, stage.folder)}
        scores = stage.folder / evaluation_name(stage.session.config.evaluate)
        if not (scores / METRICS).exists():
            _seal(scores, _scored(stage, scores))
        else:
            check(scores)
            if last:
                _load(stage)
    return {"stage": {**cost, "evaluation": str(scores)}, **read_json(scores / METRICS)}


@contextlib.contextmanager
def held(folder: Path) -> Any:  # noqa: ANN401 (a context)
    """Hold a folder against other runs; of the processes of one run, the first does."""
    with owned(folder) if is_first() else contextlib.nullcontext():
        yield


def _train(stage: Stage) -> dict[str, Any]:
    meter, step, session, notes = Meter(), 0, stage.session, []
    if stage.module is not None:
        module = stage.module()
        best = BestWeights(stage.folder / WEIGHTS, stage.monitor, stage.patience)
        learned = Learned(stage.name)
        train(stage.name, module, stage.folder, best, session.config, learned, *stage.callbacks, start=stage.start)
        best.check()
        notes = learned.notes(module)
        step = best.best_step
        if isinstance(module, StageModule):
            session.learner.policy = module.trained()
    cost = {**meter.read(), "best_step": step, "folder": str(stage.folder), **({"notes": notes} if notes else {})}
    if stage.shared:
        _seal(stage.folder, cost)
    if stage.judge is not None and is_first() and (said := stage.judge()):
        warnings.warn(said, stacklevel=2)
    return cost


def _seal(folder: Path, metrics: dict[str, Any]) -> None:
    """Have the first process finish a folder that all of them go on with."""
    if is_first():
        seal(folder, metrics)
    barrier()


def _load(stage: Stage) -> None:
    """Put the weights that the stage has chosen into its recommender."""
    if stage.module is not None:
        weights = stage.folder / WEIGHTS
        stage.session.recommender.load_state(read_weights(weights), str(weights))


def _scored(stage: Stage, folder: Path) -> dict[str, Any]:
    """Final metrics on validation and test rows; the ranks are kept in a folder."""
    _load(stage)
    return score(stage.session, stage.title, folder)


def stages_of(session: Session, objective: Objective | None) -> list[Stage]:
    """The stages of a configuration in their order, with what is wrong with any of them said before one trains.

    Raises:
        ConfigError: if objective, rewards and rollout do not fit each other.
        DataError: if the texts that stage `activate` learns cannot be used.
    """
    stages: list[Stage] = []
    if objective is None:
        return [_baseline(session)]
    if "align" in session.config.stages:
        stages.append(_align(session))
    if "activate" in supervised_stages(session.config):
        stages.append(_activate(session, stages[-1].folder if stages else None))
    if "rl" in session.config.stages:
        stages.append(_rl(session, objective, stages[-1].folder / WEIGHTS if stages else None))
    return stages


def _align(session: Session) -> Stage:
    options, folder = session.config.align, _shared(session.config, f"align-{session.align_key()}")
    plain, teacher = session.plain, session.teacher if options.teacher_share else None

    kind = ItemSFTModule if session.spec.reads_items else SFTModule

    def module() -> SFTModule | ItemSFTModule:
        own = tuned(options, session.config.model)
        return kind(session.packer(), own, teacher, **_arguments(plain, folder, None))

    return Stage("align", "align", folder, plain, module, monitor(session.config), options.patience)


def _activate(session: Session, align: Path | None) -> Stage:
    options, folder = session.config.activate, _shared(session.config, f"activate-{session.activate_key()}")
    before, chosen = align / WEIGHTS if align is not None else None, monitor(session.config)
    way = "without thinking" if session.layout.writes_text else "by the next item alone"
    judge = partial(forgotten, align, folder, chosen, way) if align else None

    def module() -> ActivateModule:
        own = tuned(options, session.config.model)
        return ActivateModule(session.activate_batches(), own, **_arguments(session, folder, before))

    about = "activate", "activate", folder, session, module, chosen, options.patience
    stage = Stage(*about, judge=judge, note=session.activate_note)
    if not stage.finished:
        session.activate_batches()  # what cannot be used is told now
    return stage


def _rl(session: Session, objective: Objective, before: Path | None) -> Stage:
    config, catalog, folder = session.config, session.dataset.catalog, run_folder(session.config)
    verifier = make_verifier(session, objective)
    order = PromptOrder(session.prompt_positions(), config.rollout.prompts, config.seed)

    def module() -> RLModule:
        parts = (objective, verifier, order, session.maker, catalog.level(objective.category))
        teacher = session.teacher if objective.uses_teacher else None
        aims = teacher, session.gold
        return RLModule(*parts, config.rl, config.rollout, config.seed, *aims, **_arguments(session, folder, before))

    best = config.rl.select == "best"
    samples = RolloutSamples(catalog, folder / "samples.jsonl")
    chosen, title = monitor(config) if best else None, config.objective["name"]
    return Stage("rl", title, folder, session, module, chosen, shared=False, start=best, callbacks=(samples,))


def _baseline(session: Session) -> Stage:
    config, folder, recommender = session.config, run_folder(session.config), session.recommender
    name = config.baseline["name"]
    if not isinstance(recommender, TrainedBaseline):
        return Stage("baseline", name, folder, session, None, None, shared=False)
    options = recommender.config

    def module() -> BaselineModule:
        length, seed = options.max_length + 1, config.seed
        batches = SequenceBatches(session.dataset, recommender.per, length, options.batch, seed=seed)
        return BaselineModule(recommender, batches, seed, **_ranking_arguments(session, folder))

    return Stage("baseline", name, folder, session, module, monitor(config), options.patience, shared=False)


def tuned(options: ConfigT, model: ModelConfig) -> ConfigT:
    """Options of a supervised stage with its optimiser by name."""
    if options.optimizer != "auto":
        return options
    return replace(options, optimizer="muon" if model.name == "tiny" else "adamw")


def _shared(config: RunConfig, name: str) -> Path:
    return experiment_folder(config) / name


def _ranking_arguments(session: Session, folder: Path) -> dict[str, Any]:
    config, narrow = session.config, validating(session.config)
    return {
        "validation": session.batches("valid"),
        "metrics": ranking_metrics(narrow, session.dataset.catalog, session.table.codes),
        "evaluation": narrow,
        "kind": config.select.ranking,
        "max_grad_norm": config.trainer.max_grad_norm,
        "max_skipped": config.trainer.max_skipped_steps,
        "folder": folder,
    }


def _arguments(session: Session, folder: Path, before: Path | None) -> dict[str, Any]:
    build = partial(session.learner.make, before)
    return {"build": build, "layout": session.layout} | _ranking_arguments(session, folder)


def build_objective(config: RunConfig) -> Objective:
    """The configured objective."""
    options = {name: value for name, value in config.objective.items() if name != "name"}
    built = OBJECTIVES.build(config.objective["name"], options)
    if not isinstance(built, Objective):
        raise ComponentError(
            f"objective {config.objective['name']!r}: its factory must return an Objective, such as a PolicyObjective "
            f"of four pieces; it returned {described(built)}."
        )
    built.name = config.objective["name"]
    return built


def make_verifier(session: Session, objective: Objective) -> Verifier:
    """The configured rewards, checked against what the objective needs before anything is trained."""
    config, catalog, layout = session.config, session.dataset.catalog, session.layout
    table = session.table
    feedback = session.dataset.sequences.feedback
    context = RewardContext.from_catalog(catalog, table.codes, table.report.collision_level, feedback)
    verifier = build_verifier(config.rewards, context, layout.writes_text, layout.steps, layout.items)
    setting = Setting(
        rewards=tuple(verifier.rewards),
        step_rewards=bool(verifier.step_names),
        group_size=1 if objective.trains_on_targets and not layout.writes_text else config.rollout.group_size,
        items=layout.items,
        categories=_has_categories(catalog, objective.category),
        thinking=layout.writes_text,
        teacher=config.teacher.run is not None,
        attributes=tuple(catalog.attributes),
    )
    objective.check(setting, config.objective["name"])
    check_rollout(config.rollout, layout)
    if verifier.uses_information:
        check_tells(layout, "rewards.information")
    if objective.uses_teacher:
        session.teacher  # noqa: B018 (one that cannot be used is told now)
    return verifier


def _has_categories(catalog: Catalog, column: str | None) -> bool:
    """Whether any item has a value in the column that an objective names, or a category where it names none."""
    if column is None or column not in catalog.attributes:  # the objective refuses the latter
        return bool(catalog.category_names)
    return bool((catalog.level(column) >= 0).any())
