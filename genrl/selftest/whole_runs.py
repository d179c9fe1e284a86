"""Whole runs against each other: in parts, stopped and resumed, on two processes. All of them on the CPU."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from genrl.objectives import Objective
from genrl.runs.fit import fit
from genrl.runs.stage import build_objective
from genrl.selftest.engine import largest
from genrl.selftest.world import SMALL, Found, World

OPTIONS = (
    *(
        "stages=[rl]",
        "objective=sage",
        "objective.diversity=group",
        "objective.kl_coef=0.01",
        "objective.ema_decay=0.5",
    ),
    *("rollout.prompts=8", "rollout.group_size=4", "rollout.epochs=2", "rl.max_steps=4", "rl.validate_every=2"),
    *("rl.learning_rate=0.001", "rl.select=last", "evaluate.valid_users=10", "evaluate.test_users=10"),
)
"""A run that keeps a running mean and takes two updates per rollout."""
CUT = 3
"""Optimiser step behind which the run ends; its last checkpoint is of the step before."""
LIMIT = 100
"""Seconds that two processes may take."""


class _Cut(BaseException):
    """The end of a run, which nothing inside it may mend."""


def micro_batches(world: World) -> Found:
    """Weights after updates in micro-batches of three prompts, against those of whole batches."""
    return _compared(world, _run(world, "parts", "rollout.micro_batch=3"))


def resumed(world: World) -> Found:
    """Weights of a run that ended in the middle and `--resume` took up, against one that went through."""
    objective = build_objective(world.config(*OPTIONS))
    renew, steps = objective.after_step, [0]

    def after_step() -> None:
        renew()
        steps[0] += 1
        if steps[0] == CUT:
            raise _Cut

    objective.after_step = after_step  # type: ignore[method-assign]
    with contextlib.suppress(_Cut):
        _run(world, "cut", objective=objective)
    return _compared(world, _run(world, "cut", resume=True))


def two_processes(world: World) -> Found:
    """Weights of a run in two processes, against those of one."""
    words = [*SMALL, *OPTIONS, f"output={world.folder}", "name=two", "trainer.devices=2"]
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "genrl", "fit", *words],
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"two processes ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return _compared(world, Path(world.folder) / "toy" / "two-s0")


def _run(world: World, name: str, *options: str, resume: bool = False, objective: Objective | None = None) -> Path:
    """Train in silence and return the run folder."""
    config = world.config(*OPTIONS, f"name={name}", *options)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return fit(config, resume=resume, objective=objective)


def _compared(world: World, folder: Path) -> Found:
    """Largest difference of the weights of a run from those of one that nobody disturbed."""
    whole = Path(world.folder) / "toy" / "whole-s0"
    if not whole.exists():
        _run(world, "whole")
    one, other = (load_file(place / "weights.safetensors") for place in (folder, whole))
    if one.keys() != other.keys():
        raise RuntimeError(f"one run kept other weights than the other: {sorted(one.keys() ^ other.keys())}")
    return largest([one[name] - value for name, value in other.items()])
