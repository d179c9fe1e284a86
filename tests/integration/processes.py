"""Runs in processes of their own: forked from one that has loaded genrl once, as loading takes longer than they do.

A forked run can leave without a word at a given moment, as a killed process does.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import sklearn.feature_extraction.text  # noqa: F401 (runs import it late, and so each fork would)
import torch
import torch.utils.tensorboard
import transformers.models.qwen3.modeling_qwen3  # noqa: F401 (likewise)

import genrl.runs.fit  # noqa: F401 (likewise)
from genrl.cli import main
from genrl.training.callbacks import BestWeights, History
from genrl.training.checkpoints import ResumePoint
from genrl.training.rl import RLModule
from tests.runs import curves_drawn

KILLED = 137
"""What a shell reports of a process that was killed with signal 9."""
MOMENTS = {
    "step": (History, "on_train_batch_end"),
    "saved": (ResumePoint, "on_train_epoch_end"),
    "between": (BestWeights, "on_validation_end"),
}
"""Right after an optimiser step, right after its checkpoint, or after the best weights and before the checkpoint."""
Leave = tuple[str, int, str]
"""Stage (align or rl), step and moment at which a run leaves."""
LIMIT = 300.0
"""Seconds after which a run that does not get anywhere fails the test."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload([__name__])


def start(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    at: Leave | None = None,
    number: int = 0,
) -> BaseProcess:
    """Start a run, without curves, in a process group of its own; what it says goes to `log`.

    At a moment it gets the signal `number`, or is gone.
    """
    return _started(words, log, environment or {}, at, number)


def leave(words: Sequence[str], log: Path, at: Leave) -> None:
    """Run until a moment, at which the process is gone."""
    end(_started(words, log, {}, at), log, KILLED)


def stop(words: Sequence[str], log: Path, at: Leave, number: int, environment: Mapping[str, str] | None = None) -> None:
    """Run, send the process a signal at a moment, and wait until it has ended as one does that was asked to."""
    end(_started(words, log, environment or {}, at, number), log, 128 + number)


def end(process: BaseProcess, log: Path, code: int = 0) -> None:
    """Wait for the end of a run, which must have that exit code."""
    process.join(LIMIT)
    process.kill()
    assert process.exitcode == code, log.read_text()[-3000:]


def _started(
    words: Sequence[str], log: Path, environment: Mapping[str, str], at: Leave | None, number: int = 0
) -> BaseProcess:
    process = server.Process(target=_run, args=(list(words), log, dict(environment), at, number))
    process.start()
    return process


def _run(words: list[str], log: Path, environment: dict[str, str], at: Leave | None, number: int) -> None:
    os.setsid()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("a") as said, curves_drawn(False):
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        if at is not None:
            owner, name = MOMENTS[at[2]]
            setattr(owner, name, _leave_after(getattr(owner, name), at[0], at[1], number))
        sys.exit(main(words))


def _leave_after(method: Callable[..., None], stage: str, step: int, number: int) -> Callable[..., None]:
    """The same callback method, and then the end of the process, or a signal, if stage and step are those."""

    def wrapped(self: object, trainer: L.Trainer, module: L.LightningModule, *arguments: Any) -> None:
        method(self, trainer, module, *arguments)
        here = "rl" if isinstance(module, RLModule) else "align"
        if (here, trainer.global_step) == (stage, step) and not trainer.sanity_checking:
            if not number:
                os._exit(KILLED)
            os.kill(os.getpid(), number)

    return wrapped
