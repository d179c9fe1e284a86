"""Run the command line, but end the process without any clean-up at a given step of a given stage, as a kill would.

python killed_run.py ARGUMENTS OF genrl     with KILL_STAGE, KILL_STEP and KILL_WHEN (step | saved) in the environment
"""

from __future__ import annotations

import os
import sys
from typing import Any

from genrl.cli import main
from genrl.training import callbacks


def install(kill_stage: str, kill_step: int, when: str) -> None:
    def leave(trainer: Any, module: Any) -> None:
        stage = {"SFTModule": "align", "RLModule": "rl"}[type(module).__name__]
        if stage == kill_stage and trainer.global_step == kill_step:
            os._exit(137)

    if when == "step":
        callbacks.StageProgress.on_train_batch_end = lambda self, trainer, module, *rest: leave(trainer, module)
        return
    save = callbacks.ResumePoint.on_train_epoch_end

    def save_and_leave(self: Any, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        leave(trainer, module)

    callbacks.ResumePoint.on_train_epoch_end = save_and_leave


if __name__ == "__main__":
    install(os.environ["KILL_STAGE"], int(os.environ["KILL_STEP"]), os.environ["KILL_WHEN"])
    sys.exit(main(sys.argv[1:]))
