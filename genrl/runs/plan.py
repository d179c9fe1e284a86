"""What memory a run will need, told before its model is loaded, and what to change where that is not there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from genrl.config.checks import contradictions
from genrl.config.schema import RunConfig, TrainerConfig
from genrl.errors import UnsupportedError
from genrl.metrics.functional import needed_width
from genrl.objectives import Objective
from genrl.policy.distribution import LOGITS, head_rows
from genrl.policy.load import load_outline
from genrl.policy.memory import CHOICES, FLOATS, Model, Need, inference, model_of, training
from genrl.policy.model import Policy, PolicySpec
from genrl.policy.share import WAYS, Shape, cost
from genrl.prompts.packing import PackedBatch
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, tuned
from genrl.runs.stages import supervised_stages
from genrl.training.fitting import quiet_libraries
from genrl.training.rl import micro_batches

GIB = 2**30
RESERVE = 0.7 * GIB
"""Of a GPU, what CUDA, its libraries and gaps between blocks take. Not measured yet."""
STEPS = 3
"""Supervised steps whose batches are made to see how large they are."""


@dataclass(frozen=True)
class Plan:
    """What a run needs on each device, part by part."""

    needs: tuple[Need, ...]
    room: float | None
    """Bytes that there are; None: unknown."""
    reserve: float
    """Bytes of it that are no tensors."""
    proposal: tuple[str, ...] = ()
    """Options with which it fits, where it does not."""
    proposed: float = 0.0
    """Bytes with these."""

    @property
    def worst(self) -> Need:
        """The part with the highest peak."""
        return max(self.needs, key=lambda need: need.total)

    @property
    def total(self) -> float:
        """Bytes at the highest peak."""
        return self.worst.total + self.reserve

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.room is None or self.total <= self.room

    def lines(self) -> list[str]:
        """What is to be said of it."""
        there = "" if self.room is None else f" of {in_words(self.room)}"
        parts = ", ".join(f"{name} {in_words(value)}" for name, value in self.worst.parts().items())
        reserve = f", libraries {in_words(self.reserve)}" if self.reserve else ""
        others = ", ".join(f"{need.part} {in_words(need.total)}" for need in self.needs if need is not self.worst)
        peak = f"{in_words(self.total)}{there} on each device at the peak"
        found = [f"memory: {peak}, in {self.worst.part}: {parts}{reserve}"]
        found += [f"  less in {others}"] if others else []
        if self.fits:
            return found
        if not self.proposal:
            return [*found, "  It does not fit, nor does any setting tried. Take a smaller model or a larger device."]
        return [*found, f"  It does not fit. This does, with {in_words(self.proposed)}: {' '.join(self.proposal)}"]


def in_words(size: float) -> str:
    """Bytes for people.

    Example:
        >>> in_words(1.5 * 2**30), in_words(300_000)
        ('1.5 GiB', '0.3 MiB')
    """
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def plan(session: Session, objective: Objective, room: float | None = None, *, gpu: bool | None = None) -> Plan:
    """What the stages of a session will need, with settings that fit where they do not.

    Args:
        session: of a language model; its weights are not made.
        objective: of stage `rl`.
        room: bytes of a device; None: what is free on the device that would train.
        gpu: whether the device is a GPU; None: as the configuration has it.
    """
    gpu = on_gpu(session.config.trainer) if gpu is None else gpu
    room = free(gpu) if room is None else room
    planner = Planner(session, objective, gpu=gpu)
    found = Plan(tuple(planner.needs(session.config)), room, RESERVE if gpu else 0.0)
    return found if found.fits else _proposed(found, planner)


def plan_run(config: RunConfig, room: float | None = None) -> Plan:
    """The plan of a configuration; its data are read and its SIDs made as `fit` does, and kept for it.

    Args:
        config: a checked configuration.
        room: bytes of a GPU, which need not be here; None: what is free on the device that would train.

    Raises:
        UnsupportedError: for a policy that is no language model, and for baselines.
    """
    if config.stages == ["baseline"] or config.model.name == "item":
        raise UnsupportedError(
            "a memory plan is for language models; baselines and model.name=item are small beside one. Leave it out."
        )
    quiet_libraries()
    return plan(Session.build(config), build_objective(config), room, gpu=True if room is not None else None)


def on_gpu(config: TrainerConfig) -> bool:
    """Whether the trainer takes a GPU."""
    return config.accelerator == "gpu" or (config.accelerator == "auto" and torch.cuda.is_available())


def free(gpu: bool) -> float | None:
    """Bytes that are free on this machine's GPU, or in its main memory within what the process may use."""
    if gpu:
        return float(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else None
    found = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup") / name
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            found = min(found, float(text))
    return found


class Planner:
    """Plans configurations that differ from that of a session in nothing but how they train.

    Args:
        session: data, SIDs, and the policy but its weights.
        objective: of stage `rl`.
        gpu: whether the device is a GPU.
    """

    def __init__(self, session: Session, objective: Objective, *, gpu: bool) -> None:
        self.session, self.objective, self.gpu = session, objective, gpu
        self.spec, self.layout = cast(PolicySpec, session.spec), session.layout
        self._models: dict[str, tuple[Model, Policy]] = {}
        self._batches: dict[str, PackedBatch] = {}

    def needs(self, config: RunConfig) -> Iterator[Need]:
        """Each part of a run."""
        model, policy = self._model(config)
        kinds = {name: tuned(getattr(config, name), config.model).optimizer for name in supervised_stages(config)}
        for name, kind in kinds.items():
            yield self._supervised(config, model, name, kind)
        if "rl" in config.stages:
            kinds["rl"] = config.rl.optimizer
            yield from self._rl(config, model, policy)
        yield max(
            self._rankings(config, model, max(kinds.values(), key=model.means), exact=False),
            self._rankings(config, model, "", exact=config.evaluate.exact),
            key=lambda need: need.total,
        )

    def _model(self, config: RunConfig) -> tuple[Model, Policy]:
        trainer = config.trainer
        key = repr((config.model, trainer.precision, trainer.checkpointing))
        if key not in self._models:
            policy = load_outline(config.model, self.spec)
            if trainer.precision == "bf16-true":
                policy.to_bfloat16()
            self._models[key] = (
                model_of(
                    policy,
                    quantised=config.model.quantize != "none",
                    mixed=trainer.precision == "bf16-mixed",
                    checkpointing=trainer.checkpointing,
                    dropout=bool(config.model.dropout or (config.model.lora.rank and config.model.lora.dropout)),
                ),
                policy,
            )
        return self._models[key]

    def _supervised(self, config: RunConfig, model: Model, stage: str, kind: str) -> Need:
        batch = self._batch(config, stage)
        rows, length = batch.tokens.shape
        words = len(batch.text_places)
        chosen = len(batch.items) * self.layout.plain.length
        if batch.states is not None:
            is_word = torch.tensor([kind == "word" or self.layout.in_words for kind in self.layout.kinds])
            told = int(is_word[batch.states.site].sum())
            words, chosen = words + told, chosen + len(batch.places) - told
        logits = self._logits(model, words, chosen)
        mask = float(rows * length**2 * (1 + model.size))
        return training(model, stage, kind, rows * length, mask, logits, passes=1, copies=self._copies(config, kind))

    def _batch(self, config: RunConfig, stage: str) -> PackedBatch:
        """The largest of the first batches of a stage."""
        key = repr((stage, getattr(config, stage), config.data.max_history))
        if key not in self._batches:
            own = config == self.session.config
            session = self.session if own else replace(self.session, config=config)
            planner: Any = session.plain.packer() if stage == "align" else session.activate_batches()
            planner.world = _world(config)
            steps = (planner.step(index) for index in range(min(STEPS, planner.steps_per_epoch)))
            self._batches[key] = max(steps, key=lambda batch: batch.tokens.numel())
        return self._batches[key]

    def _rl(self, config: RunConfig, model: Model, policy: Policy) -> Iterator[Need]:
        rollout, layout, world = config.rollout, self.layout, _world(config)
        kind, depth = config.rl.optimizer, layout.length - 1
        writes = layout.writes_text or not self.objective.trains_on_targets
        prompts, group = rollout.prompts // world, rollout.group_size if writes else 1
        context = self.session.recommender.template.longest(config.data.max_history)
        copy = model.held.gradients if self.objective.uses_reference else 0.0
        whole = prompts * (context + group * depth)
        if writes:
            again = self.objective.uses_reference or rollout.minibatches * rollout.epochs > 1  # scored without gradient
            logits = self._drawn(model, prompts * group)
            if again:
                logits = max(logits, self._logits(model, *self._choices(prompts * group)))
            tokens, mask = (whole, prompts * (context + group * depth) ** 2) if again else (prompts * context, 0)
            drawn = inference(model, "rl rollout", kind, tokens, whole, float(mask * (1 + model.size)), logits)
            yield replace(drawn, reference=copy)
        passes = micro_batches(rollout, world)
        some = -(-prompts // rollout.minibatches // passes)
        shape = Shape(some, group, context, depth)
        ways = [way for way in WAYS if way != "expand" or not model.checkpointing]
        way = min(ways, key=lambda way: cost(way, shape, policy, decode=False))
        tokens = some * (context + group * depth) if way != "naive" else some * group * (context + depth)
        mask = {"tree": some * (context + group * depth) ** 2, "expand": some * group * depth * (context + depth)}.get(
            way, some * group * (context + depth) ** 2
        )
        logits = self._logits(model, *self._choices(some * group))
        copies = self._copies(config, kind)
        size = float(mask * (1 + model.size))
        update = training(model, "rl update", kind, tokens, size, logits, passes=passes, copies=copies)
        yield replace(update, reference=copy)

    def _rankings(self, config: RunConfig, model: Model, kind: str, *, exact: bool) -> Need:
        evaluate, layout = config.evaluate, self.layout
        users = min(evaluate.batch, max(evaluate.valid_users or evaluate.batch, evaluate.test_users or evaluate.batch))
        context = self.session.recommender.template.longest(config.data.max_history)
        count = needed_width(evaluate.k, layout.codes if evaluate.level == "sid" else None)
        wanted = count + min(count, config.data.max_history) if exact else count
        beams, levels = min(layout.completions, max(evaluate.beam, wanted)), len(self.spec.sizes)
        texts = max(1, evaluate.thinking_samples) if layout.writes_text else 1
        behind = layout.length if layout.writes_between or layout.writes_slates or layout.in_words else levels
        cached = users * texts * (context + layout.length - behind + beams * (behind - 1))
        rows = users * (beams if behind > levels else texts)
        logits = max(self._drawn(model, rows), 4.0 * CHOICES * users * beams * max(self.spec.sizes))
        return inference(model, "rankings", kind, users * context, cached, 0.0, logits)

    def _drawn(self, model: Model, rows: int) -> float:
        """Bytes of the distributions of one token of so many rows."""
        words = head_rows(self.layout, self.session.config.rollout.normalize) == "vocab"
        return 4.0 * CHOICES * rows * (model.vocabulary if words else max(self.spec.sizes))

    def _choices(self, rows: int) -> tuple[int, int]:
        """Words and codes that are told from logits in so many completions."""
        layout = self.layout
        codes = layout.items * len(self.spec.sizes)
        if layout.in_words or self.session.config.rollout.normalize == "vocab":
            return rows * layout.length, 0
        return rows * (layout.length - codes), rows * codes

    def _logits(self, model: Model, words: int, codes: int) -> float:
        """Bytes of the logits of words, which are computed in parts where they are many, and of codes."""
        width = max(self.spec.sizes)
        return 4.0 * (FLOATS * min(words * model.vocabulary, LOGITS) + CHOICES * codes * width)

    def _copies(self, config: RunConfig, kind: str) -> float:
        """Copies of all gradients at the end of a step: buckets of DDP, AdamW's on GPUs, what is saved on a CPU."""
        return float(_world(config) > 1) + float(not self.gpu or kind == "adamw")


def _world(config: RunConfig) -> int:
    return config.trainer.devices * config.trainer.num_nodes


def _proposed(found: Plan, planner: Planner) -> Plan:
    """A plan that does not fit, with the first settings on the ladder that do.

    A rung stays, at the value that changes least, where it lowers what parts of a run are over the room; those that
    turn out not to be needed are taken away again.
    """
    start, taken = planner.session.config, list[tuple[str, ...]]()

    def over(words: list[tuple[str, ...]]) -> tuple[float, Plan]:
        config = _with(start, words)
        if any(contradictions(config)):  # such as 4-bit weights without adapters
            return math.inf, found
        tried = replace(found, needs=tuple(planner.needs(config)))
        return sum(max(0.0, need.total + found.reserve - (found.room or 0.0)) for need in tried.needs), tried

    least, best = over(taken)
    for rung in _ladder(start, planner):
        kept = None
        for words in rung:
            excess, tried = over([*taken, words])
            if excess < least:
                least, best, kept = excess, tried, words
        taken += [] if kept is None else [kept]
        if not least:
            break
    if least:
        return found
    for words in list(taken):
        fewer = [other for other in taken if other is not words]
        excess, tried = over(fewer)
        if not excess:
            taken, best = fewer, tried
    return replace(found, proposal=tuple(word for words in taken for word in words), proposed=best.total)


def _ladder(config: RunConfig, planner: Planner) -> Iterator[list[tuple[str, ...]]]:
    """Settings to try, what changes least first: what is computed at a time, precision, then what is trained."""
    prompts = config.rollout.prompts // config.rollout.minibatches // _world(config)
    yield [(f"evaluate.batch={size}",) for size in _halves(config.evaluate.batch, 8)]
    if "rl" in config.stages:
        yield [(f"rollout.micro_batch={size}",) for size in _halves(config.rollout.micro_batch or prompts, 1)]
    if not config.trainer.checkpointing:
        yield [("trainer.checkpointing=true",)]
    if config.trainer.precision != "bf16-true":
        yield [("model.dtype=bfloat16", "trainer.precision=bf16-true")]
    if not config.model.from_scratch:
        if not config.model.lora.rank:
            yield [("model.lora.rank=16",)]
        if config.model.quantize == "none":
            yield [("model.quantize=nf4",)]
    if "align" in config.stages:
        yield [(f"align.items_per_step={size}",) for size in _halves(config.align.items_per_step, 16)]
    if "activate" in config.stages:
        yield [(f"activate.examples_per_step={size}",) for size in _halves(config.activate.examples_per_step, 2)]
    yield [(f"data.max_history={size}",) for size in _halves(config.data.max_history, 5)]


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value


def _with(config: RunConfig, words: Sequence[tuple[str, ...]]) -> RunConfig:
    """The configuration under `key=value` texts of the ladder."""
    made = deepcopy(config)
    for text in (word for each in words for word in each):
        key, _, value = text.partition("=")
        *path, name = key.split(".")
        section: Any = made
        for part in path:
            section = getattr(section, part)
        before = getattr(section, name)
        setattr(section, name, value == "true" if isinstance(before, bool) else type(before)(value))
    return made
