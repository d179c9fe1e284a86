"""Runs `genrl` and leaves without a word at a given moment, as a killed process does.

    python killed_run.py STAGE STEP MOMENT fit ...

STAGE is align or rl. MOMENT is `step` (right after that optimiser step), `saved` (right after the checkpoint of that
step) or `between` (after the best weights of that step were written, before the checkpoint is).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import lightning as L

from genrl.cli import main
from genrl.training.callbacks import BestWeights, History, ResumePoint
from genrl.training.rl import RLModule

CODE = 137
"""What a shell reports of a process that was killed with signal 9."""


def leave_after(method: Callable[..., None], stage: str, step: int) -> Callable[..., None]:
    """The same callback method, and then the end of the process if stage and step are those."""

    def wrapped(self: object, trainer: L.Trainer, module: L.LightningModule, *arguments: Any) -> None:
        method(self, trainer, module, *arguments)
        here = "rl" if isinstance(module, RLModule) else "align"
        if (here, trainer.global_step) == (stage, step) and not trainer.sanity_checking:
            os._exit(CODE)

    return wrapped


def run(stage: str, step: str, moment: str, *words: str) -> int:
    """Run the command line with one callback patched."""
    owner, name = {
        "step": (History, "on_train_batch_end"),
        "saved": (ResumePoint, "on_train_epoch_end"),
        "between": (BestWeights, "on_validation_end"),
    }[moment]
    setattr(owner, name, leave_after(getattr(owner, name), stage, int(step)))
    return main(words)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
