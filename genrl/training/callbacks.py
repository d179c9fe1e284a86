"""What happens around the steps: checkpoints, the best weights, progress, samples and notes for the curves."""

import json
import math
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from genrl.catalog.items import Catalog
from genrl.errors import CheckpointError
from genrl.files import save_weights, weights_hash, write_bytes
from genrl.layouts.base import Layout
from genrl.ops import world_max
from genrl.policy.model import Policy
from genrl.progress import Display
from genrl.stopping import answer, ask, asked
from genrl.training.rl import RLModule
from genrl.training.samples import markdown, rollout_samples
from genrl.training.stage import RankingModule
from genrl.training.stream import StepStream


class StopPoint(Callback):
    """End a round before its validation, behind a step that training can go on from; `ResumePoint` writes that down.

    It ends as soon as this process or another of the run was asked to stop, and training with it; or when so much has
    passed since the last checkpoint, and training goes on.

    Args:
        steps: optimiser steps between checkpoints at most; 0: as many as a round has.
        minutes: minutes between them at most, by the clock of the first process; 0: as many as a round takes.
    """

    def __init__(self, steps: int = 0, minutes: float = 0.0) -> None:
        self.steps = steps
        self.minutes = minutes
        self.step = 0
        self.stopped = False

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Lightning has put handlers of its own in the place of ours."""
        answer()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """As before a validation."""
        answer()
        self.step = trainer.global_step
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Behind each optimiser step, on all ranks alike."""
        step = trainer.global_step
        if step == self.step or not isinstance(module, RankingModule) or step % module.updates:
            return
        self.step = step
        wanted = [asked(), int(trainer.is_global_zero and self._due())]
        if trainer.world_size > 1:  # alone nothing has to wait for the device
            wanted = world_max(torch.tensor(wanted, device=module.device)).tolist()
        number, due = wanted
        if number:
            ask(number)
            self.stopped = True
        if number or due:
            cast(StepStream[Any], trainer.train_dataloader).end()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """`ResumePoint` comes next."""
        trainer.should_stop = trainer.should_stop or self.stopped
        self._begin(trainer)

    def _begin(self, trainer: L.Trainer) -> None:
        """Count from here."""
        self.written, self.began = trainer.global_step, time.monotonic()

    def _due(self) -> bool:
        """Whether so much has passed that a checkpoint is wanted."""
        many = 0 < self.steps <= self.step - self.written
        return many or 0 < self.minutes * 60 <= time.monotonic() - self.began


class BestWeights(Callback):
    """Keep the trained weights of the best validation, and stop when there was none better for a while.

    Args:
        path: safetensors file of the best weights.
        monitor: metric to maximise; None keeps the latest weights instead.
        patience: validations without a better value before training stops; 0 never stops.
    """

    def __init__(self, path: Path, monitor: str | None, patience: int = 0) -> None:
        self.path = path
        self.monitor = monitor
        self.patience = patience
        self.best = float("-inf")
        self.best_step = 0
        self.waited = 0
        self.content = ""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "content": self.content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = state_dict["best"], state_dict["best_step"], state_dict["waited"]
        self.content = state_dict["content"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A run that was killed right after it had decided to stop must not train on."""
        trainer.should_stop = trainer.should_stop or self._exhausted()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(module, RankingModule):
            return
        value = float("inf") if self.monitor is None else float(trainer.callback_metrics[self.monitor])
        if value > self.best or self.monitor is None:
            self.best, self.best_step, self.waited, self.content = value, trainer.global_step, 0, ""
            weights = module.state()
            if trainer.is_global_zero:
                save_weights(weights, self.path, module.metadata())
                self.content = weights_hash(self.path)
        else:
            self.waited += 1
        trainer.should_stop = trainer.should_stop or self._exhausted()

    def check(self) -> None:
        """Behind the last step: whether the file still holds the weights that were written.

        A run that is being finished writes them once more, with another header.

        Raises:
            CheckpointError: if not, as where it was damaged while the run lay idle.
        """
        if self.content and weights_hash(self.path) != self.content:
            raise CheckpointError(
                f"{self.path} is missing or does not hold the weights of step {self.best_step}, which were the best. "
                f"Remove the resume-*.ckpt beside it and give the command again to train the stage once more."
            )

    def _exhausted(self) -> bool:
        return self.patience > 0 and self.waited >= self.patience


class StageProgress(Callback):
    """Shows how far a stage is, with its latest loss or reward and validation, and how far a validation is."""

    def __init__(self, name: str, total: int, monitor: str = "val/ndcg@10") -> None:
        self.name = name
        self.total = total
        self.monitor = monitor
        self.display: Display | None = None
        self.note, self.validation = "", ""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Say what is trained."""
        if trainer.is_global_zero and isinstance(module, RankingModule):
            trained = sum(value.numel() for value in module.trainable().values())
            self._open(trainer).say(f"{self.name}: {trained:,} trained parameters")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: object) -> None:
        """Move on."""
        if not trainer.is_global_zero:
            return
        logged = trainer.callback_metrics
        name = "train/reward" if "train/reward" in logged else "train/loss"
        if name in logged:
            self.note = f"{name[6:]} {float(logged[name]):.3f}"
        self._open(trainer).move(self.steps, trainer.global_step, note=f"{self.note}  {self.validation}".strip())

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count the batches of a validation, which may take minutes."""
        if trainer.is_global_zero:
            total = sum(trainer.num_val_batches)
            self.counted = 0
            self.batches = self._open(trainer).add("  validation", total if total < math.inf else None, "batches")

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: object) -> None:
        """Move on."""
        if trainer.is_global_zero:
            self.counted += 1
            self._open(trainer).move(self.batches, self.counted)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the latest validation."""
        if not trainer.is_global_zero:
            return
        display, logged = self._open(trainer), trainer.callback_metrics
        display.remove(self.batches)
        if self.monitor in logged:
            self.validation = f"{self.monitor.replace('/', ' ')} {float(logged[self.monitor]):.4f}"
        display.move(self.steps, trainer.global_step, note=f"{self.note}  {self.validation}".strip(), tell=True)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the display."""
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close the display, so that the message stands on a line of its own."""
        self._close()

    def _open(self, trainer: L.Trainer) -> Display:
        if self.display is None:
            self.display = Display().__enter__()
            self.steps = self.display.add(self.name, self.total, "steps", trainer.global_step)
        return self.display

    def _close(self) -> None:
        if self.display is not None:
            self.display.__exit__()
            self.display = None


class History(Callback):
    """Notes every logged value by step in a JSON-lines file, for curves; a resumed run goes on in the same file.

    Validation values are noted always, those of training at every so many optimiser steps.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.noted = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Drop notes of steps that will be made again."""
        self.noted = trainer.global_step
        if trainer.is_global_zero:
            keep_notes(self.path, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: object) -> None:
        """Note training values, once per step however many micro-batches it has."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self.noted:
            self.noted = trainer.global_step
            self._note(trainer, validation=False)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._note(trainer, validation=True)

    def _note(self, trainer: L.Trainer, *, validation: bool) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") == validation}
        if values:
            with self.path.open("a" if trainer.global_step else "w") as file:  # step 0 begins the file
                file.write(json.dumps({"step": trainer.global_step, **values}) + "\n")


class RolloutSamples(Callback):
    """Keeps what the policy writes: a few prompts with completions, rewards and advantages after each validation.

    They go into a JSON-lines file and, as a table, into TensorBoard; a resumed run goes on in the same file.
    """

    def __init__(self, catalog: Catalog, path: Path, prompts: int = 3, completions: int = 6) -> None:
        self.catalog = catalog
        self.path = path
        self.prompts = prompts
        self.completions = completions

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Drop samples of steps that will be made again."""
        if trainer.is_global_zero:
            keep_notes(self.path, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not isinstance(module, RLModule) or module.sampled is None or not trainer.is_global_zero:
            return
        codes = module.layout.codes
        texts = partial(_thinking, cast(Policy, module.policy), module.layout) if module.layout.writes_text else None
        samples = rollout_samples(*module.sampled, codes, self.catalog, self.prompts, self.completions, texts)
        with self.path.open("a") as file:
            record = {"step": trainer.global_step, "samples": [asdict(sample) for sample in samples]}
            file.write(json.dumps(record) + "\n")
        if trainer.logger is not None:
            board: Any = trainer.logger
            board.experiment.add_text("rollouts", markdown(samples), trainer.global_step)


def _thinking(policy: Policy, layout: Layout, tokens: Tensor) -> tuple[str, ...]:
    """Text of each think block of a completion [T]."""
    return tuple(policy.tokenizer.decode(block).strip() for block in layout.blocks(tokens))


def keep_notes(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file of notes that lie behind a step, and what a cut has left that is no note."""
    if not path.exists():
        return
    kept, lines = [], path.read_bytes().splitlines()
    for number, line in enumerate(lines):
        try:
            note = json.loads(line)
            if note["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{path} held {len(lines) - number} damaged line(s) at its end; cut off.", stacklevel=2)
            break
    write_bytes(path, b"".join(line + b"\n" for line in kept))
