"""One LightningModule trains any baseline that learns."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from genrl.batches import Ranking, Requests
from genrl.ops import seed_of
from genrl.prompts.packing import SequenceBatch, SequenceBatches
from genrl.recommenders.base import TrainedBaseline
from genrl.training.stage import RankingModule, scheduled, warmup_cosine
from genrl.training.stream import StepStream


class BaselineModule(RankingModule):
    """Trains a recommender on item sequences, as its own options say; `seed` is that of dropout and negatives."""

    def __init__(
        self,
        recommender: TrainedBaseline,
        batches: SequenceBatches,
        seed: int,
        **ranking: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**ranking)
        self.strict_loading = False  # the recommender loads its own weights, see on_load_checkpoint
        self.recommender = recommender
        self.batches = batches
        self.seed = seed
        self.config = recommender.config
        self.max_steps = batches.steps_per_epoch * self.config.max_epochs
        self.round_steps = max(1, round(batches.steps_per_epoch * self.config.validate_every))

    def train_dataloader(self) -> StepStream[SequenceBatch]:
        self.batches.rank, self.batches.world = self.global_rank, self.trainer.world_size
        return StepStream(self._batches, lambda: self.global_step, self.round_steps, self.max_steps)

    def _batches(self, step: int) -> Iterator[SequenceBatch]:
        torch.manual_seed(seed_of(self.seed, step, self.global_rank))  # dropout and negatives of this step
        yield self.batches.step(step)

    def prepare(self, step: int) -> None:
        self.batches.prepare(step)

    def training_step(self, batch: SequenceBatch, index: int) -> Tensor:
        """Mean loss of the targets of the step, over all ranks."""
        self.recommender.train()
        loss = self.recommender.loss(batch) * self.trainer.world_size / batch.share
        self.gather(loss)
        return self.skips.watch(loss, batch)

    def rank(self, batch: Requests) -> Ranking:
        return self.recommender.rankings(batch, self.evaluation, (self.kind,))[self.kind]

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.recommender.trained()

    def state(self) -> dict[str, Tensor]:
        return self.recommender.state()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is saved of the recommender: the rest is rebuilt from the configuration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {f"recommender.{name}": value for name, value in self.recommender.state().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        prefix = len("recommender.")
        state = {name[prefix:]: value for name, value in checkpoint.pop("state_dict").items()}
        self.recommender.load_state(state, "the last checkpoint")
        checkpoint["state_dict"] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, cosine to the last step."""
        config = self.config
        factor = warmup_cosine(config.warmup_steps, self.max_steps, config.final_learning_rate)
        return scheduled(self.optimiser(config.learning_rate, config.weight_decay, (0.9, 0.999)), factor)
