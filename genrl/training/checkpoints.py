"""What a stage needs to go on after its process has died: on the disk for sure, two of them, known by content."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from genrl.files import atomic, file_hash, flush, move

KEPT = 2
NAME = re.compile(r"resume-(\d+)-([0-9a-f]{16})\.ckpt")
"""Optimiser step and the first digits of the SHA-256 of what the file held when it was whole."""


class Checkpoints(TorchCheckpointIO):
    """Lightning's files, written where they shall lie, not by way of the temporary folder, and through to the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        with atomic(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)


class ResumePoint(Callback):
    """After each round, write everything a killed run needs to go on, and keep the one before it as well.

    What curves and samples are made of is on the disk before.

    Args:
        folder: of the stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin a round: Lightning would go on to count the batches of the one that ended with the checkpoint.

        It would validate too early then, and with micro-batches of another size step too early.
        """
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        temporary = self.folder / "resume.writing"
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            for notes in self.folder.glob("*.jsonl"):  # they end at this step, or further on
                flush(notes)
            move(temporary, self.folder / f"resume-{trainer.global_step:08d}-{file_hash(temporary)[:16]}.ckpt")
            for path in points(self.folder)[KEPT:]:
                path.unlink()
        trainer.strategy.barrier("resume point")


def points(folder: Path) -> list[Path]:
    """The checkpoints of a stage, whole or not, latest first."""
    found = [(int(match[1]), path) for path in folder.glob("resume-*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: (-pair[0], -pair[1].stat().st_mtime_ns))]


def whole(path: Path) -> bool:
    """Whether a checkpoint holds what its name says."""
    match = NAME.fullmatch(path.name)
    return match is not None and file_hash(path)[:16] == match[2]


def latest(folder: Path) -> Path | None:
    """The latest checkpoint of a stage that holds what it held when it was written; None: there is none.

    A damaged one is told and passed over.
    """
    found = points(folder)
    for number, path in enumerate(found):
        if whole(path):
            return path
        instead = f"going on from {found[number + 1].name}" if number + 1 < len(found) else "starting the stage again"
        warnings.warn(
            f"{path} does not hold what was written into it: the disk or a copy has damaged it; {instead}.",
            stacklevel=2,
        )
    return None
