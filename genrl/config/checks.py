"""What the types of the schema cannot say: ranges, and options that contradict each other."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

from genrl.config.schema import DataConfig, PoolConfig, RunConfig
from genrl.config.select import METRICS, cut_of
from genrl.errors import suggest
from genrl.given import wrong_name
from genrl.options import fill, node_of, out_of_bounds
from genrl.options import option as bounded

STAGES = ("align", "activate", "rl", "baseline")
"""Stages in the order they run; the last one alone."""
LIGHTNING = {
    "accelerator": "trainer.accelerator",
    "accumulate_grad_batches": "rollout.micro_batch",
    "check_val_every_n_epoch": "align.validate_every or rl.validate_every",
    "default_root_dir": "output",
    "devices": "trainer.devices",
    "gradient_clip_val": "trainer.max_grad_norm",
    "limit_train_batches": "align.max_epochs or rl.max_steps",
    "limit_val_batches": "evaluate.valid_users",
    "log_every_n_steps": "trainer.log_every",
    "logger": "output",
    "max_epochs": "align.max_epochs",
    "max_steps": "rl.max_steps",
    "num_nodes": "trainer.num_nodes",
    "overfit_batches": "evaluate.valid_users",
    "precision": "trainer.precision",
    "strategy": "trainer.strategy",
    "val_check_interval": "rl.validate_every",
}
"""Arguments of lightning.Trainer that genrl sets itself, or that would stop validation -> the option instead."""
FIXED = {
    "barebones": "it would keep no metrics and no checkpoints",
    "enable_autolog_hparams": "the configuration is kept in config.yaml",
    "limit_predict_batches": "a ranking is always over all rows",
    "limit_test_batches": "write evaluate.test_users instead",
    "model_registry": "weights stay in the run folder",
    "callbacks": "write Python (genrl.training) instead",
    "enable_checkpointing": "the best and the last weights are kept by genrl itself",
    "enable_model_summary": "a stage says its model at its start",
    "enable_progress_bar": "a stage shows its own progress",
    "fast_dev_run": "it would stop validation, and no weights could be chosen. Write rl.max_steps=1 for a short run",
    "num_sanity_val_steps": "every stage validates before it trains where that counts",
    "reload_dataloaders_every_n_epochs": "a rollout is drawn anew for each round",
    "use_distributed_sampler": "prompts are shared out by genrl itself",
}
"""Arguments of lightning.Trainer that no option changes -> why."""


UNITS, MOST_UNITS = ("weeks", "days", "hours", "minutes", "seconds"), 10**9
LONGEST_PATH = 3500
"""Bytes of the path of an experiment at most: Linux takes 4,096, and files lie below it."""


@dataclass
class ExtraConfig:
    """Arguments of lightning.Trainer that are left to the user."""

    benchmark: bool | None = None
    detect_anomaly: bool = False
    deterministic: Literal[True, False, "warn"] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    inference_mode: bool = True
    max_time: Any = None
    min_epochs: int | None = bounded(None, ge=0)
    min_steps: int | None = bounded(None, ge=0)
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class Problem:
    """Something wrong with one option, or between several; the first key is where the user should look."""

    keys: tuple[str, ...]
    reason: str


def contradictions(config: RunConfig) -> Iterator[Problem]:
    """Yield everything that is wrong with well-typed options."""
    yield from _run(config)
    yield from data_contradictions(config.data)
    yield from _model(config)
    yield from _activate(config)
    yield from _prompt(config)
    yield from _windows(config)
    yield from _training(config)
    yield from _evaluation(config)


def option(config: RunConfig, key: str) -> Any:  # noqa: ANN401
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def _run(config: RunConfig) -> Iterator[Problem]:
    for stage in config.stages:
        if stage not in STAGES:
            yield Problem(("stages",), f"has no stage {stage!r}.{suggest(stage, STAGES)} Stages: {', '.join(STAGES)}")
    known = [stage for stage in config.stages if stage in STAGES]
    if not config.stages or known != sorted(set(known), key=STAGES.index):
        yield Problem(("stages",), f"must name one or more stages once, in the order {', '.join(STAGES)}")
    yield from _places(config)
    if "baseline" in config.stages and len(config.stages) > 1:
        yield Problem(("stages",), "has `baseline` beside other stages. Run it alone: --baseline NAME")
    if "rl" in config.stages and not config.rewards:
        yield Problem(("rewards",), "is empty: stage rl has nothing to optimise. Add e.g. rewards.exact_match.weight=1")


def _places(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the folders that a run is to have."""
    for part in Path(config.experiment).parts or ("",):
        if wrong := wrong_name(part):
            yield Problem(("experiment",), f"must be the name of a folder under `output`, e.g. beauty; it {wrong}")
    wrong = "" if config.name is None else wrong_name(config.name)
    if wrong:
        yield Problem(("name",), f"must be the name of a folder, e.g. sapo-wide; it {wrong}")
    try:
        size = len(os.fsencode(Path(config.output, config.experiment).expanduser().absolute()))
    except (RuntimeError, UnicodeEncodeError) as error:  # nobody's home, half of a character
        yield Problem(("output",), f"is no folder: {error}")
    else:
        if size > LONGEST_PATH or "\0" in config.output:
            reason = f"and `experiment` are a path of {size:,} bytes, and may be one of {LONGEST_PATH:,} without NUL"
            yield Problem(("output", "experiment"), reason)


def unencodable(config: RunConfig) -> Iterator[Problem]:
    """Yield each option whose text has no UTF-8, in which a run keeps its configuration."""
    for key, value in _texts(asdict(config)):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start].encode("unicode_escape").decode()
            yield Problem((key,), f"holds {half}, half of a character. Write whole ones, in UTF-8")


def _texts(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 (nested plain values)
    if isinstance(values, str):
        yield prefix, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(str(name), prefix)
            yield from _texts(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, prefix)


def data_contradictions(data: DataConfig) -> Iterator[Problem]:
    """Yield everything that is wrong with well-typed options of section `data`."""
    columns = data.columns
    if data.source == "files" and not data.interactions:
        reason = "is needed by data.source=files: give the file to learn from"
        yield Problem(("data.interactions", "data.source"), reason)
    for key in ("interactions", "items", "interactions_header", "items_header"):
        if data.source == "toy" and getattr(data, key):
            yield Problem((f"data.{key}", "data.source"), "is not read with data.source=toy. Add data.source=files")
    for key in ("feedback", "attributes"):
        if data.source == "toy" and getattr(columns, key):
            reason = "names columns that the toy data set does not have. Set it to [], or add data.source=files"
            yield Problem((f"data.columns.{key}", "data.source"), reason)
    if data.source == "toy" and data.split == "column":
        reason = "column needs a column, and the toy data set has none. Use leave_one_out or temporal"
        yield Problem(("data.split", "data.source"), reason)
    elif data.split == "column" and not columns.split:
        yield Problem(("data.columns.split", "data.split"), "is needed by data.split=column: name the column")
    yield from _times(data)
    yield from _pool(data.pool)
    if data.valid_fraction + data.test_fraction >= 1:
        yield Problem(("data.valid_fraction", "data.test_fraction"), "and data.test_fraction leave nothing to train on")


def _times(data: DataConfig) -> Iterator[Problem]:
    named = data.columns.time
    if data.split == "temporal" and not named:
        yield Problem(("data.columns.time", "data.split"), "is needed by data.split=temporal: name the column")
    if data.time_unit and data.source == "toy" and data.time_unit != "days":
        yield Problem(("data.time_unit", "data.source"), "must be days or null: toy data has days")
    if data.time_unit and data.source == "files" and not named:
        reason = "is the unit of a column that nobody names. Name it in data.columns.time, or set data.time_unit=null"
        yield Problem(("data.time_unit", "data.columns.time"), reason)


def _pool(pool: PoolConfig) -> Iterator[Problem]:
    wanted = pool.neighbours + pool.popular + pool.target
    if pool.size is not None and wanted > pool.size:
        reason = f"has no room for {pool.neighbours} neighbours, {pool.popular} popular items"
        reason += " and a target" * pool.target
        reason += f". Set it to {wanted} or more, or lower data.pool.neighbours or data.pool.popular"
        yield Problem(("data.pool.size", "data.pool.neighbours", "data.pool.popular"), reason)


def _model(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if model.quantize == "nf4" and model.lora.rank == 0:
        reason = "nf4 needs adapters, because 4-bit weights cannot be trained. Add model.lora.rank=16"
        yield Problem(("model.quantize", "model.lora.rank"), reason)
    if model.name == "tiny" and model.hidden % (2 * model.heads):
        reason = f"must be a multiple of twice model.heads={model.heads}: each head has an even size"
        yield Problem(("model.hidden", "model.heads"), reason)
    if model.name == "item":
        yield from _item_model(config)
    if config.align.teacher_share and not config.teacher.run:
        reason = "needs a teacher. Add teacher.run=FOLDER, a finished run on the same data"
        yield Problem(("align.teacher_share", "teacher.run"), reason)
    if config.prior.run and config.rollout.normalize == "vocab":
        reason = "vocab cannot be had with a prior, which knows codes and not words. Set it to legal, or prior.run=null"
        yield Problem(("rollout.normalize", "prior.run"), reason)


def _activate(config: RunConfig) -> Iterator[Problem]:
    """What is thought in stage `activate`, or which slates are learned."""
    activate, kept = config.activate, config.data.columns.feedback
    if activate.traces == "jsonl" and not activate.path:
        reason = "is needed by activate.traces=jsonl: give the file of traces"
        yield Problem(("activate.path", "activate.traces"), reason)
    if activate.traces != "jsonl" and activate.path:
        reason = f"is not read with activate.traces={activate.traces}. Add activate.traces=jsonl"
        yield Problem(("activate.path", "activate.traces"), reason)
    if activate.traces == "teacher" and (config.data.source, config.data.toy.world) != ("toy", "hop"):
        reason = "teacher knows the world hop of the toy catalogue alone. Add data.source=toy data.toy.world=hop, or "
        yield Problem(("activate.traces", "data.toy.world"), f"{reason}choose derived, template or jsonl")
    if not activate.gold and activate.path is None:
        reason = "false leaves nothing to learn. Add activate.traces=jsonl activate.path=FILE, a file of slates"
        yield Problem(("activate.gold", "activate.path"), reason)
    for name in ("labels", "label_days"):
        if not activate.gold and getattr(activate, name):
            reason = "is about gold slates, and activate.gold=false leaves them out. Leave one of them out"
            yield Problem((f"activate.{name}", "activate.gold"), reason)
    for column, weight in activate.labels.items():
        if column not in kept:
            reason = f"is not kept beside the interactions.{suggest(column, kept)} Kept: {', '.join(kept) or 'none'}. "
            reason += "Name it in data.columns.feedback (with data.source=files)"
            yield Problem((f"activate.labels.{column}", "data.columns.feedback"), reason)
        elif not isfinite(weight):
            yield Problem((f"activate.labels.{column}",), "must be a finite number")


def _windows(config: RunConfig) -> Iterator[Problem]:
    """Windows of time, and what those in days need of the data."""
    for name in ("windows", "window_days"):
        ends = getattr(config.prompt, name) or []
        if ends != sorted(set(ends)):
            yield Problem((f"prompt.{name}",), "must rise from each window to the next, e.g. [5, 20]")
    for key in ("prompt.window_days", "activate.label_days"):
        if option(config, key) is not None and config.data.time_unit is None:
            reason = "is in days, and nothing says in which unit times are. Add data.time_unit=s for seconds (date for "
            reason += "dates, days for toy data ...), or leave it out where there are no times"
            yield Problem((key, "data.time_unit"), reason)


def _item_model(config: RunConfig) -> Iterator[Problem]:
    """What the item policy, which has no text and no vocabulary, does not do."""
    item, history = config.model.item, config.data.max_history
    if item.hidden % item.heads:
        yield Problem(("model.item.hidden", "model.item.heads"), f"must be a multiple of model.item.heads={item.heads}")
    if history > item.positions:
        reason = f"is more than model.item.positions={item.positions}. Add model.item.positions={history}"
        yield Problem(("data.max_history", "model.item.positions"), reason)
    if config.model.lora.rank or config.model.quantize != "none":
        key = "model.lora.rank" if config.model.lora.rank else "model.quantize"
        yield Problem(
            (key, "model.name"), "is for language models; model.name=item trains all its weights. Leave it out"
        )
    if config.prompt.prefix:
        yield Problem(("prompt.prefix", "model.name"), "is text, which model.name=item does not read. Leave it out")
    if config.align.text_tasks == "on":
        reason = "needs a policy that reads text, and model.name=item reads items. Set it to auto"
        yield Problem(("align.text_tasks", "model.name"), reason)
    if config.rollout.normalize == "vocab":
        reason = "vocab needs a policy with a vocabulary; model.name=item scores the codes of the trie alone. Use legal"
        yield Problem(("rollout.normalize", "model.name"), reason)
    for name in ("checkpointing", "compile"):
        if getattr(config.trainer, name):
            reason = "is for language models; passes of model.name=item are too small to gain by it. Set it to false"
            yield Problem((f"trainer.{name}", "model.name"), reason)


def _prompt(config: RunConfig) -> Iterator[Problem]:
    """What prompts in words go with."""
    prompt = config.prompt
    if prompt.template is None:
        for name in ("candidates", "profile", "fields", "window_days"):
            if getattr(prompt, name):
                reason = "is told in words alone, and prompts are SIDs. Add prompt.template=textrec"
                yield Problem((f"prompt.{name}", "prompt.template"), reason)
        return
    if "align" in config.stages:
        reason = (
            "has `align`, which teaches prompts of SIDs, and prompt.template writes words. Use stages=[activate,rl]"
        )
        yield Problem(("stages", "prompt.template"), reason)
    if config.model.name == "item":
        yield Problem(("prompt.template", "model.name"), "is text, which model.name=item does not read. Leave it out")
    if prompt.prefix:
        yield Problem(("prompt.prefix", "prompt.template"), "is not read: write it into a template of your own")
    if prompt.candidates and config.data.pool.size is None:
        reason = "lists the candidate pool, and there is none. Add data.pool.size=100"
        yield Problem(("prompt.candidates", "data.pool.size"), reason)
    if bool(prompt.profile) != bool(prompt.fields):
        key, other = ("fields", "profile") if prompt.profile else ("profile", "fields")
        reason = f"is needed by prompt.{other}: name {'columns of the file' if prompt.profile else 'the file of users'}"
        yield Problem((f"prompt.{key}", f"prompt.{other}"), reason)


def _training(config: RunConfig) -> Iterator[Problem]:
    rollout, trainer = config.rollout, config.trainer
    shares = {"rollout.minibatches": rollout.minibatches, "trainer.devices": trainer.devices}
    if trainer.num_nodes > 1:
        shares["trainer.num_nodes"] = trainer.num_nodes
    parts = prod(shares.values())
    if rollout.prompts % parts:
        names, sizes = " x ".join(shares), " x ".join(map(str, shares.values()))
        reason = f"must be a multiple of {names} = {sizes}: prompts are shared out evenly"
        yield Problem(("rollout.prompts", *shares), reason)
    if trainer.strategy == "fsdp":
        yield from _sharded(config)
    yield from _extra(trainer.extra)


def _extra(extra: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with arguments of lightning.Trainer, which would end in its own errors, or say nothing."""
    for name, instead in LIGHTNING.items():
        if name in extra:
            yield Problem((f"trainer.extra.{name}",), f"is set by genrl itself. Write {instead} instead")
    for name, why in FIXED.items():
        if name in extra:
            yield Problem((f"trainer.extra.{name}",), f"is set by genrl itself: {why}")
    left = {name: value for name, value in extra.items() if name not in (*LIGHTNING, *FIXED, "plugins")}
    for key, _, reason in fill(node_of(ExtraConfig), ExtraConfig, left, _no_argument):
        yield Problem((f"trainer.extra.{key}",), reason)
    for key, reason in out_of_bounds(ExtraConfig, {**vars(ExtraConfig()), **left}):
        yield Problem((f"trainer.extra.{key}",), reason)
    if not _is_duration(extra.get("max_time", "00:00:00:01")):
        reason = "is no duration. Write days:hours:minutes:seconds, e.g. 00:12:00:00, or {minutes: 30}"
        yield Problem(("trainer.extra.max_time",), reason)


def _no_argument(name: str, known: list[str]) -> str:
    listed = ", ".join(sorted([*known, "plugins"]))
    return f"is no argument of lightning.Trainer.{suggest(name, known)} Arguments left to you: {listed}"


def _is_duration(value: Any) -> bool:  # noqa: ANN401 (whatever there is)
    """Whether a value is a length of time as lightning.Trainer takes it.

    Example:
        >>> [_is_duration(value) for value in ("00:12:00:00", {"minutes": 30}, {"minute": 30}, "12h", 5)]
        [True, True, False, False, False]
    """
    if isinstance(value, str):
        return re.fullmatch(r"\d{1,5}:\d\d:\d\d:\d\d", value) is not None
    return isinstance(value, dict) and all(
        unit in UNITS and type(amount) in (int, float) and 0 <= amount < MOST_UNITS for unit, amount in value.items()
    )


def _sharded(config: RunConfig) -> Iterator[Problem]:
    """What weights that are shared out do not go with; docs/gpu.md has the table."""
    strategy = "trainer.strategy"
    if config.stages == ["baseline"]:
        yield Problem((strategy, "stages"), "fsdp is for language models, and a baseline is small. Set it to ddp")
    elif config.model.name == "item":
        reason = "fsdp is for language models, and model.name=item has no blocks worth sharing out. Set it to ddp"
        yield Problem((strategy, "model.name"), reason)
    if config.model.quantize != "none":
        reason = "fsdp cuts packed 4-bit weights where they cannot be cut. Set it to ddp, or model.quantize=none"
        yield Problem((strategy, "model.quantize"), reason)
    if config.trainer.compile:
        reason = "fsdp gathers weights by hooks, which break compiled passes apart. Set trainer.compile=false"
        yield Problem((strategy, "trainer.compile"), reason)
    if config.trainer.branching == "expand":
        reason = "fsdp wants one pass per micro-batch, the same on all ranks, and trainer.branching=expand makes two. "
        yield Problem((strategy, "trainer.branching"), f"{reason}Set that to auto")


def _evaluation(config: RunConfig) -> Iterator[Problem]:
    metric = config.select.metric
    if metric is not None and cut_of(metric) is None:
        allowed = ", ".join(f"{name}@K" for name in METRICS)
        yield Problem(("select.metric",), f"must be one of {allowed}, e.g. ndcg@10, or null")
