"""Stage `activate`: supervised training on traces, so that the policy thinks before it names an item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from genrl.config.schema import ActivateConfig
from genrl.data.reasoning import TraceBatch, TraceBatches
from genrl.policy.score import place_scores
from genrl.policy.tree import packed_mask
from genrl.training.stage import StageModule, scheduled, warmup_cosine
from genrl.training.stream import StepStream, seed_of


class ActivateModule(StageModule):
    """Cross-entropy over the legal sets of the tokens that the policy is to choose, not of prompts and forced tokens.

    loss = -1/n sum over chosen tokens of log pi(token | what stands before it), n = such tokens of the step on all
    ranks

    Args:
        batches: makes the batches.
        config: the activate section.
        stage: arguments of `StageModule`; its layout has thinking.
    """

    def __init__(self, batches: TraceBatches, config: ActivateConfig, **stage: Any) -> None:  # noqa: ANN401
        super().__init__(**stage)
        self.batches = batches
        self.config = config
        self.max_steps = batches.steps_per_epoch * config.max_epochs
        self.round_steps = max(1, round(batches.steps_per_epoch * config.validate_every))

    def train_dataloader(self) -> StepStream[TraceBatch]:
        """The next round of steps."""
        return StepStream(self._batches, lambda: self.global_step, self.round_steps, self.max_steps)

    def _batches(self, step: int) -> Iterator[TraceBatch]:
        torch.manual_seed(seed_of(self.config.seed, step, self.global_rank))  # dropout of this step
        yield self.batches.step(step)

    def training_step(self, batch: TraceBatch, index: int) -> Tensor:
        """Loss of one packed batch."""
        self.policy.train()
        mask = batch.segments >= 0 if self.batches.alone else packed_mask(batch.segments)
        hidden = self.policy.hidden(batch.tokens, mask, batch.positions)
        rows, columns = batch.places.unbind(1)
        logps, _ = place_scores(
            self.policy.head_for("vocab"),
            self.layout,  # type: ignore[arg-type]
            hidden[rows, columns - 1],
            batch.support,
            batch.tokens[rows, columns],
        )
        loss = -logps.sum() * self.trainer.world_size / batch.share + 0.0 * hidden.sum()  # a rank may have no trace
        self.check_finite(loss, batch)
        self.log("train/loss", loss.detach(), sync_dist=self.trainer.world_size > 1)  # the mean is that of the step
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, cosine to the last step."""
        config = self.config
        warmup = min(config.warmup_steps, max(1, self.max_steps // 10))
        factor = warmup_cosine(warmup, self.max_steps, config.final_learning_rate)
        return scheduled(self.optimiser(config.learning_rate, config.weight_decay, config.betas), factor)
