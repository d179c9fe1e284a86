"""How far the updates of one seed and one global batch differ where they should not differ at all.

    python tools/invariance.py                                  # every objective and layout
    python tools/invariance.py --only grpo --layouts sid        # some of them

Each case trains a tiny model for one or two rollouts, in float64 and in float32: in one process, and then again with
other padding, another order of rows, micro-batches, a stop and a resume, and in 2 and 4 processes (gloo) under each
strategy. One group of processes goes through all cases in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from genrl.cli.configuration import REGISTRIES
from genrl.config import RunConfig, load_config
from genrl.files import read_weights, save_weights
from genrl.objectives import OBJECTIVES
from genrl.policy.sharding import gathered, sharded
from genrl.runs.fit import fit
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, stages_of
from genrl.training.drawing import Rollout
from genrl.training.fitting import make_trainer, quiet_libraries
from genrl.training.rl import RLModule, micro_batches
from genrl.training.stage import StageModule

LAYOUTS = {
    "sid": ("layout=sid",),
    "blocked": ("layout=blocked", "layout.budget=3"),
    "interleaved": ("layout=blocked", "layout.budget=3", "layout.order=interleaved"),
    "slate": ("layout=slate", "layout.length=2"),
    "slate of titles": (
        *("layout=slate", "layout.length=2", "layout.space=text", "layout.text.show=[title]", "activate.plain=0"),
        *("prompt.template=textrec", "prompt.candidates=true", "data.pool.size=8", "data.pool.neighbours=3"),
        *("data.pool.popular=2", "data.max_history=4"),
    ),
}
SMALL = (
    *("data.toy.world=toy", "data.toy.users=80", "data.toy.items=60", "data.max_history=8", "sid.codes=8"),
    *("model.hidden=16", "model.layers=2", "model.heads=2", "model.feed_forward=32", "model.vocabulary=300"),
    *("model.dropout=0", "align.items_per_step=64", "activate.examples_per_step=9", "rollout.prompts=4"),
    *(
        "rollout.group_size=3",
        "rollout.information=0",
        "rl.learning_rate=0.001",
        "trainer.accelerator=cpu",
        "trainer.log_every=100",
    ),
    *("evaluate.valid_users=5", "evaluate.test_users=5"),
)
NOT = (("activate", "sid"), ("align", "slate of titles"), ("opd", "slate of titles"))
"""Layouts without such a stage, and a teacher of SIDs where items are named in words."""
VARIANTS = ("interleaved", "slate of titles")
"""Options of layouts, which few stages and objectives are tried with."""
FEW = ("align", "activate", "ce", "grpo", "sage")
"""Stages and objectives that are trained in every way, and in float32 as well."""
Outcome = dict[str, Tensor]
"""Gradients of the first step as `gradient/NAME`, weights behind the last as `weights/NAME`."""


@dataclass(frozen=True)
class Case:
    """Something that is trained."""

    layout: str
    stage: str
    """A supervised stage, or the name of an objective."""
    dtype: str
    dead: bool = False
    """Whether only the first group of a rollout earns anything: other processes have nothing to learn from."""

    @property
    def supervised(self) -> bool:
        """Whether there are no rollouts."""
        return self.stage in ("align", "activate")

    @property
    def overrides(self) -> tuple[str, ...]:
        """Options of the run."""
        own = (f"stages=[{self.stage}]",) if self.supervised else ("stages=[rl]", f"objective={self.stage}")
        return (*SMALL, *LAYOUTS[self.layout], *own)

    def __str__(self) -> str:
        return f"{self.stage}, {self.layout}{', one live group' * self.dead}"


@dataclass(frozen=True)
class Way:
    """What should not matter."""

    name: str
    processes: int = 1
    strategy: Any = "auto"
    micro_batch: int = 0
    padding: int = 0
    """Columns of padding more at each prompt."""
    mixed: bool = False
    """Whether groups and their rows come in another order."""
    resumed: bool = False
    """Whether the first step ends with a checkpoint, from which another trainer goes on; compared with not doing so."""

    @property
    def of_rollouts(self) -> bool:
        """Whether there is nothing to see in supervised stages."""
        return bool(self.padding or self.mixed or self.micro_batch)


ONE = Way("one process")
LOCAL = (
    Way("3 more columns of padding", padding=3),
    Way("another order of groups", mixed=True),
    Way("micro-batches of 3 prompts and of 1", micro_batch=3),
    Way("one process, resumed", resumed=True),
)


def ways(worlds: Sequence[int], strategies: Sequence[str]) -> list[Way]:
    """All that is compared with one process."""
    more = [Way(f"{world} processes, {strategy}", world, strategy) for strategy in strategies for world in worlds]
    few = [way for way in more if way.processes == min(worlds)]
    resumed = [replace(way, name=f"{way.name}, resumed", resumed=True) for way in few]
    return [*LOCAL, *more, *resumed]


class Probe(RLModule):
    """The rl stage with rollouts whose rows are padded or in another order, in the precision of the policy."""

    way: Way = ONE
    dead: bool = False

    def _draw(self, index: int, attempt: int) -> Rollout:
        drawn = super()._draw(index, attempt).to(next(self.policy.parameters()).dtype)
        if self.dead:
            rows = torch.arange(len(drawn.completions.tokens), device=self.device)
            first = torch.where((rows < drawn.completions.group_size) & (self.global_rank == 0), rows, 0)
            values = {
                name: first.to(value.dtype).view(-1, *(1,) * (value.dim() - 1)).expand_as(value)
                for name, value in drawn.rewards.values.items()
            }
            drawn = replace(drawn, rewards=replace(drawn.rewards, values=values))
        if self.way.mixed:
            drawn = drawn.groups(torch.arange(len(drawn.requests)).flip(0))
        if self.way.padding:
            fill = torch.nn.functional.pad
            requests, front = drawn.requests, (self.way.padding, 0)
            padded = replace(requests, tokens=fill(requests.tokens, front), mask=fill(requests.mask, front))
            drawn = replace(drawn, requests=padded)
        return drawn


class Gradients(L.Callback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.found: Outcome = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:  # noqa: ANN401
        """All ranks together."""
        if not self.found and isinstance(module, StageModule):
            for name, value in module.trainable().items():
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                self.found[f"gradient/{name}"] = gathered(gradient).detach().clone()


class Sessions:
    """Sessions of layouts, made once: data, SIDs and tokenizer are the same for all cases."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher = folder, teacher
        self.made: dict[str, Session] = {}

    @cache  # noqa: B019 (for as long as the tool runs)
    def config(self, words: tuple[str, ...]) -> RunConfig:
        """What overrides stand for."""
        own = (f"output={self.folder / 'runs'}", f"teacher.run={self.teacher}")
        return load_config(overrides=[*words, *own], registries=REGISTRIES)

    def of(self, case: Case, way: Way = ONE) -> Session:
        """Under the options of a case."""
        config = self.config(case.overrides)
        if case.layout not in self.made:
            self.made[case.layout] = Session.build(config)
        made = self.made[case.layout]
        trainer = replace(config.trainer, strategy=way.strategy, devices=way.processes)
        rollout = replace(config.rollout, micro_batch=way.micro_batch)
        return replace(made, config=replace(config, evaluate=made.config.evaluate, trainer=trainer, rollout=rollout))


def outcome(sessions: Sessions, case: Case, way: Way) -> Outcome:
    """Train a case in some way, on all processes that take part."""
    session = sessions.of(case, way)
    config = session.config
    stage = stages_of(session, build_objective(config))[-1]
    point = sessions.folder / "resume.ckpt"
    keep = Gradients()
    rollouts = 2 if case.stage in FEW else 1
    steps = config.rollout.epochs * config.rollout.minibatches * rollouts
    for last in (steps // 2, steps) if way.resumed else (steps,):
        assert stage.module is not None
        module: Any = stage.module()
        build = module.build
        module.build = lambda build=build: build().double() if case.dtype == "float64" else build()
        if isinstance(module, RLModule):
            module.__class__ = Probe
            vars(module).update(way=way, dead=case.dead)
        module.max_steps, module.log_dict = last, lambda *_, **__: None  # which takes a third of the time
        trainer = make_trainer(config.trainer, max_steps=last, callbacks=[keep], limit_val_batches=0)
        if isinstance(module, RLModule):
            module.config = replace(module.config, max_steps=last)
            trainer.accumulate_grad_batches = micro_batches(config.rollout, trainer.world_size)
        trainer.fit(module, ckpt_path=point if last == steps and way.resumed else None, weights_only=True)
        assert sharded(module.policy) == (way.strategy == "fsdp")
        if last < steps:
            trainer.save_checkpoint(point)
    return keep.found | {f"weights/{name}": value for name, value in module.state().items()}


def path_of(folder: Path, case: Case, way: Way) -> Path:
    """Where an outcome is kept."""
    return folder / f"{case}-{case.dtype}-{way.name}.safetensors".replace(" ", "_")


def work(rank: int, world: int, port: int, sessions: Sessions, cases: list[Case], todo: list[Way]) -> None:
    """One process of a group goes through all cases."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    with warnings.catch_warnings():
        quiet_libraries()
        warnings.filterwarnings("ignore", module="lightning")
        for case in cases:
            for way in sensible(case, todo):
                if path_of(sessions.folder, case, way).exists():
                    continue
                found = outcome(sessions, case, way)
                if world > 1:
                    torch.distributed.barrier()
                if rank == 0:
                    save_weights(found, path_of(sessions.folder, case, way))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def differences(found: Outcome, wanted: Outcome) -> tuple[float, float]:
    """Of the first gradient, relative to its norm; and of the weights, the largest, absolute.

    Infinite where the gradient is 0: nothing would be shown by it.
    """
    parts = [(found[name].double(), value.double()) for name, value in wanted.items() if name.startswith("gradient/")]
    norm = float(torch.stack([value.square().sum() for _, value in parts]).sum().sqrt())
    apart = float(torch.stack([(one - two).square().sum() for one, two in parts]).sum().sqrt())
    largest = max(
        float((found[name].double() - value.double()).abs().max())
        for name, value in wanted.items()
        if name.startswith("weights/")
    )
    return apart / norm if norm else float("inf"), largest


def sensible(case: Case, todo: Sequence[Way]) -> list[Way]:
    """The ways that show something about a case: all about a few, and about the others that processes do not matter.

    A resume has to give the same bits, which float32 shows.
    """
    if case.stage not in FEW:
        more = [way for way in todo if way.processes > 1 and not way.resumed]
        return [way for way in todo if way == ONE] + [
            way for way in more if (way.processes, way.strategy) != (4, "fsdp")
        ]
    kept = [way for way in todo if not (way.resumed and case.dtype == "float64")]
    return [way for way in kept if not (case.supervised and way.of_rollouts)]


def measure(folder: Path, cases: list[Case], todo: list[Way]) -> dict[tuple[Case, Way], tuple[float, float]]:
    """Train all cases in all ways and compare each with one process."""
    sessions = Sessions(folder, teacher_run(folder))
    for case in cases:
        sessions.of(case)
    for world in sorted({1, *(way.processes for way in todo)}):
        own = [way for way in (ONE, *todo) if way.processes == world]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (world, port, sessions, cases, own)
        torch.multiprocessing.start_processes(work, args=arguments, nprocs=world, start_method="fork")
    return {(case, way): _compared(folder, case, way, todo) for case in cases for way in sensible(case, todo)}


def _compared(folder: Path, case: Case, way: Way, todo: list[Way]) -> tuple[float, float]:
    """With one process, or with the same processes that were not stopped."""
    same = (one for one in todo if (one.processes, one.strategy) == (way.processes, way.strategy) and not one.resumed)
    before = next(same, ONE) if way.resumed and way.processes > 1 else ONE
    found, wanted = (read_weights(path_of(folder, case, each)) for each in (way, before))
    return differences(found, wanted)


def teacher_run(folder: Path) -> Path:
    """A finished baseline, which objective `opd` learns from."""
    words = [*SMALL, "stages=[baseline]", "baseline=item_knn", f"output={folder / 'teacher'}"]
    with contextlib.redirect_stdout(io.StringIO()):
        return fit(load_config(overrides=words, registries=REGISTRIES))


def table(found: dict[tuple[Case, Way], tuple[float, float]]) -> Iterator[str]:
    """Rows of ways, the largest differences over all cases in columns."""
    cases, todo = dict.fromkeys(case for case, _ in found), dict.fromkeys(way for _, way in found)
    dtypes = dict.fromkeys(case.dtype for case in cases)
    heads = [f"{dtype}: {what}" for dtype in dtypes for what in ("gradient", "weights")]
    yield f"| way | {' | '.join(heads)} | largest for |"
    yield "|---" * (len(heads) + 2) + "|"
    for way in todo:
        cells, worst = [], ""
        for dtype in dtypes:
            own = {case: found[case, way] for case in cases if case.dtype == dtype and (case, way) in found}
            cells += [f"{max(pair[place] for pair in own.values()):.1e}" if own else "" for place in (0, 1)]
            worst = worst or str(max(own, key=lambda case: own[case][0], default=""))
        yield f"| {way.name} | {' | '.join(cells)} | {worst} |"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, and fail where float64 differs by more than `--allowed`."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0], allow_abbrev=False)
    stages = ["align", "activate", *OBJECTIVES.names()]
    parser.add_argument("--only", nargs="*", default=stages, choices=stages, metavar="STAGE", help="or objectives")
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--worlds", nargs="*", default=[2, 4], type=int, metavar="PROCESSES")
    parser.add_argument("--strategies", nargs="*", default=["ddp", "fsdp"], choices=["ddp", "fsdp"])
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"], choices=["float64", "float32"])
    parser.add_argument("--allowed", type=float, default=1e-10, help="relative difference of a float64 gradient")
    parser.add_argument("--folder", type=Path, help="keep outcomes here, and go on with those that are there")
    options = parser.parse_args(words)
    cases = [
        Case(layout, stage, dtype)
        for layout in options.layouts
        for stage in options.only
        for dtype in options.dtypes
        if (stage, layout) not in NOT and (stage in FEW or (dtype == "float64" and layout not in VARIANTS))
    ]
    cases += [replace(case, dead=True) for case in cases if case.stage in ("grpo", "sage")]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="invariance-") as temporary:
        folder = Path(temporary) if options.folder is None else options.folder
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, cases, ways(options.worlds, options.strategies))
    print("\n".join(table(found)))
    print(f"\n{len(cases)} cases, {time.perf_counter() - began:.0f} s")
    bounds = {"float64": options.allowed, "float32": 1e-3}
    wrong = {at: pair for at, pair in found.items() if not pair[0] <= (0 if at[1].resumed else bounds[at[0].dtype])}
    for (case, way), pair in wrong.items():
        print(f"{case} ({case.dtype}), {way.name}: gradient {pair[0]:.1e}, weights {pair[1]:.1e}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
