"""How far the updates of one seed and one global batch differ where they should not differ at all.

    python tools/invariance.py                                  # every objective and layout: about 15 minutes of a CPU
    python tools/invariance.py --only grpo --layouts sid        # some of them

Each case trains a tiny model for a few optimiser steps, in float64 and in float32: in one process, and then again with
other padding, another order of rows, micro-batches, a stop and a resume, and in 2 and 4 processes (gloo) under each
strategy. One group of processes goes through all cases in turn.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from genrl.policy.sharding import gathered
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
        "layout=slate",
        "layout.length=2",
        "layout.text=title",
        "data.pool.size=12",
        *("data.pool.neighbours=4", "data.pool.popular=2"),
    ),
}
SMALL = (
    *("data.toy.world=toy", "data.toy.users=80", "data.toy.items=60", "data.max_history=8", "sid.codes=8"),
    *("model.hidden=16", "model.layers=2", "model.heads=2", "model.feed_forward=32", "model.vocabulary=300"),
    *("model.dropout=0", "align.items_per_step=64", "activate.examples_per_step=9", "rollout.prompts=8"),
    *("rollout.group_size=4", "rl.learning_rate=0.001", "trainer.accelerator=cpu", "trainer.log_every=100"),
    *("evaluate.valid_users=5", "evaluate.test_users=5"),
)
STEPS = 2
"""Optimiser steps of each run."""
Outcome = dict[str, Tensor]
"""Gradients of the first step as `gradient/NAME`, weights behind the last as `weights/NAME`."""


@dataclass(frozen=True)
class Case:
    """Something that is trained."""

    layout: str
    stage: str
    """A supervised stage, or the name of an objective."""
    dtype: str

    @property
    def overrides(self) -> tuple[str, ...]:
        supervised = self.stage in ("align", "activate")
        own = (f"stages=[{self.stage}]",) if supervised else ("stages=[rl]", f"objective={self.stage}")
        return (*SMALL, *LAYOUTS[self.layout], *own)


@dataclass(frozen=True)
class Way:
    """What should not matter."""

    name: str
    processes: int = 1
    overrides: tuple[str, ...] = ()
    padding: int = 0
    """Columns of padding more at each prompt."""
    mixed: bool = False
    """Whether groups and their rows come in another order."""
    resumed: bool = False
    """Whether the first step ends with a checkpoint, from which another trainer goes on."""


ONE = Way("one process")
LOCAL = (
    Way("3 more columns of padding", padding=3),
    Way("another order of groups", mixed=True),
    Way("micro-batches of 3 prompts", overrides=("rollout.micro_batch=3",)),
    Way("stopped and resumed", resumed=True),
)


def ways(worlds: Sequence[int], strategies: Sequence[str]) -> list[Way]:
    """All that is compared with one process."""
    more = [
        Way(f"{world} processes, {strategy}", world, (f"trainer.strategy={strategy}", f"trainer.devices={world}"))
        for strategy in strategies
        for world in worlds
    ]
    resumed = [replace(way, name=f"{way.name}, resumed", resumed=True) for way in more]
    return [*LOCAL, *more, *resumed]


class Probe(RLModule):
    """The rl stage with rollouts whose rows are padded or in another order, in the precision of the policy."""

    way: Way = ONE

    def _draw(self, index: int, attempt: int) -> Rollout:
        drawn = super()._draw(index, attempt).to(next(self.policy.parameters()).dtype)
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

    def config(self, case: Case, way: Way) -> RunConfig:
        words = [*case.overrides, *way.overrides, f"output={self.folder / 'runs'}", f"teacher.run={self.teacher}"]
        return load_config(overrides=words, registries=REGISTRIES)

    def of(self, case: Case, way: Way = ONE) -> Session:
        """Under the options of a case."""
        config = self.config(case, way)
        if case.layout not in self.made:
            self.made[case.layout] = Session.build(config)
        made = self.made[case.layout]
        return replace(made, config=replace(config, evaluate=made.config.evaluate))


def outcome(sessions: Sessions, case: Case, way: Way) -> Outcome:
    """Train a case in some way, on all processes that take part."""
    session = sessions.of(case, way)
    config = session.config
    stage = stages_of(session, build_objective(config))[-1]
    point = sessions.folder / "resume.ckpt"
    keep = Gradients()
    for last in (STEPS // 2, STEPS) if way.resumed else (STEPS,):
        assert stage.module is not None
        module: Any = stage.module()
        build = module.build
        module.build = lambda build=build: build().double() if case.dtype == "float64" else build()
        if isinstance(module, RLModule):
            module.__class__, module.way = Probe, way
        module.max_steps = last
        trainer = make_trainer(config.trainer, max_steps=last, callbacks=[keep], limit_val_batches=0)
        if isinstance(module, RLModule):
            module.config = replace(module.config, max_steps=last)
            trainer.accumulate_grad_batches = micro_batches(config.rollout, trainer.world_size)
        trainer.fit(module, ckpt_path=point if last == STEPS and way.resumed else None, weights_only=True)
        if last < STEPS:
            trainer.save_checkpoint(point)
    return keep.found | {f"weights/{name}": value for name, value in module.state().items()}


def path_of(folder: Path, case: Case, way: Way) -> Path:
    return folder / f"{case.layout}-{case.stage}-{case.dtype}-{way.name}.safetensors".replace(" ", "_")


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
            for way in todo:
                found = outcome(sessions, case, way)
                if rank == 0:
                    save_weights(found, path_of(sessions.folder, case, way))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def differences(found: Outcome, wanted: Outcome) -> tuple[float, float]:
    """Of the first gradient, relative to its norm; and of the weights, the largest, absolute.

    Raises:
        ValueError: if nothing was learned, so that nothing is shown by it.
    """
    parts = [(found[name].double(), value.double()) for name, value in wanted.items() if name.startswith("gradient/")]
    norm = float(torch.stack([value.square().sum() for _, value in parts]).sum().sqrt())
    if norm == 0.0:
        raise ValueError("the gradient is 0")
    apart = float(torch.stack([(one - two).square().sum() for one, two in parts]).sum().sqrt())
    largest = max(
        float((found[name].double() - value.double()).abs().max())
        for name, value in wanted.items()
        if name.startswith("weights/")
    )
    return apart / norm, largest


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
    return {(case, way): _compared(folder, case, way) for case in cases for way in todo}


def _compared(folder: Path, case: Case, way: Way) -> tuple[float, float]:
    wanted, found = (read_weights(path_of(folder, case, each)) for each in (ONE, way))
    try:
        return differences(found, wanted)
    except ValueError as error:
        raise ValueError(f"{case.stage} with {case.layout}: {error}") from error


def teacher_run(folder: Path) -> Path:
    """A finished baseline, which objective `opd` learns from."""
    words = [*SMALL, "stages=[baseline]", "baseline=item_knn", f"output={folder / 'teacher'}"]
    return fit(load_config(overrides=words, registries=REGISTRIES))


def table(found: dict[tuple[Case, Way], tuple[float, float]]) -> Iterator[str]:
    """Rows of ways, the largest differences over all cases in columns."""
    cases, todo = dict.fromkeys(case for case, _ in found), dict.fromkeys(way for _, way in found)
    dtypes = dict.fromkeys(case.dtype for case in cases)
    heads = [f"{dtype}: {what}" for dtype in dtypes for what in ("gradient", "weights")]
    yield f"| against one process | {' | '.join(heads)} | largest for |"
    yield "|---" * (len(heads) + 2) + "|"
    for way in todo:
        cells, worst = [], ""
        for dtype in dtypes:
            own = {case: found[case, way] for case in cases if case.dtype == dtype}
            cells += [f"{max(pair[place] for pair in own.values()):.1e}" for place in (0, 1)]
            case = max(own, key=lambda one: own[one][0])
            worst = worst or f"{case.stage}, {case.layout}"
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
    options = parser.parse_args(words)
    cases = [
        Case(layout, stage, dtype)
        for layout in options.layouts
        for stage in options.only
        for dtype in options.dtypes
        if not (stage == "activate" and layout == "sid")
    ]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="invariance-") as folder:
        found = measure(Path(folder), cases, ways(options.worlds, options.strategies))
    print("\n".join(table(found)))
    print(f"\n{len(cases)} cases, {time.perf_counter() - began:.0f} s")
    wrong = [
        (case, way) for (case, way), pair in found.items() if case.dtype == "float64" and pair[0] > options.allowed
    ]
    for case, way in wrong:
        print(f"{case.stage} with {case.layout}, {way.name}: gradient {found[case, way][0]:.1e}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
