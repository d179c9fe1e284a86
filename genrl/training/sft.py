"""Supervised stages, and the first of them, `align`: next-item training on packed histories."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrl.config.schema import ActivateConfig, AlignConfig
from genrl.layouts.base import Layout
from genrl.ops import seed_of
from genrl.policy.attention import packed_mask
from genrl.policy.distribution import LOGITS
from genrl.policy.guide import Guide
from genrl.policy.item import ItemPolicy
from genrl.policy.model import Head, Policy
from genrl.policy.score import item_loss
from genrl.policy.sharding import whole
from genrl.policy.share import Hidden, wrong_ways
from genrl.prompts.packing import PackedBatch, Planner, SegmentPlanner, SequenceBatch
from genrl.training.journal import Value
from genrl.training.stage import StageModule, scheduled, warmup_cosine
from genrl.training.stream import StepStream


class SupervisedModule(StageModule):
    """A stage that lowers the negative log-likelihood of given tokens.

    loss = -1/n sum over target tokens of log pi(token | what stands before it), n = target tokens of the step on all
    ranks

    Args:
        batches: makes the batches.
        config: the stage's section.
        teacher: has a share of each target, see `lesson`; None: there is none.
        stage: arguments of `StageModule`.
    """

    def __init__(
        self,
        batches: Planner[Any],
        config: AlignConfig | ActivateConfig,
        teacher: Guide | None = None,
        **stage: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**stage)
        self.batches = batches
        self.config = config
        self.teacher = teacher
        self.max_steps = batches.steps_per_epoch * config.max_epochs
        self.round_steps = max(1, round(batches.steps_per_epoch * config.validate_every))

    @abstractmethod
    def total(self, batch: Any) -> Tensor:  # noqa: ANN401 (what the planner makes)
        """Negative log-likelihood of the targets of a batch, summed."""

    def lesson(self, histories: Tensor | None) -> dict[str, Any]:
        """The arguments of `item_loss` about the teacher, for targets behind histories [n, H].

        Where there is no history it has nothing to say, and the target counts alone.
        """
        if self.teacher is None or histories is None or not len(histories):
            return {}
        assert isinstance(self.config, AlignConfig)
        known = (histories >= 0).any(1)
        return {"teacher": self.teacher.masses(histories), "shares": self.config.teacher_share * known}

    def train_dataloader(self) -> StepStream[Any]:
        self.batches.rank, self.batches.world = self.global_rank, self.trainer.world_size
        return StepStream(self._batches, lambda: self.global_step, self.round_steps, self.max_steps)

    def _batches(self, step: int) -> Iterator[Any]:
        torch.manual_seed(seed_of(self.config.seed, step, self.global_rank))  # dropout of this step
        yield self.batches.step(step)

    def prepare(self, step: int) -> None:
        self.batches.prepare(step)

    def training_step(self, batch: Any, index: int) -> Tensor:  # noqa: ANN401
        self.policy.train()
        self.updating.begin()
        loss, values = self.updating.forward(batch)
        self.gather(values["train/loss"])
        return loss

    def loss(self, part: Any) -> tuple[Tensor, dict[str, Value]]:  # noqa: ANN401
        """Its share of the loss of the step, times the number of ranks, as DDP averages over them."""
        loss = self.total(part) * self.trainer.world_size / part.share
        return self.skips.watch(loss, part), {"train/loss": loss.detach()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Linear warm-up, cosine to the last step."""
        config = self.config
        warmup = min(config.warmup_steps, max(1, self.max_steps // 10))
        factor = warmup_cosine(warmup, self.max_steps, config.final_learning_rate)
        matrices = self.policy.matrices if config.optimizer == "muon" else ()
        made = self.optimiser(config.learning_rate, config.weight_decay, config.betas, matrices, config.optimizer)
        return scheduled(made, factor)


class PackedModule(SupervisedModule):
    """A language model on packed rows of tokens."""

    batches: SegmentPlanner

    @abstractmethod
    def read(self, batch: PackedBatch, hidden: Tensor, head: Head) -> Tensor:
        """The total of a batch from hidden states [R, L, H]."""

    def rows(self, batch: PackedBatch) -> str:
        """Rows of the head that the batch needs, see `Policy.forward`."""
        return "vocab"

    def on_fit_start(self) -> None:
        """See on the training device whether the model takes the mask that keeps segments of a row apart."""
        super().on_fit_start()
        with whole(self.policy):
            self.batches.alone = "tree" in wrong_ways(cast(Policy, self.policy), self.batches.longest)

    def total(self, batch: PackedBatch) -> Tensor:
        whole = packed_mask(batch.segments, batch.positions, batch.leaves)
        mask = batch.segments >= 0 if self.batches.alone else whole
        total: Tensor = self.policy(batch.tokens, mask, batch.positions, partial(self.read, batch), self.rows(batch))
        return total


class SFTModule(PackedModule):
    """Cross-entropy over the legal codes of target items, and over the words of text examples."""

    def read(self, batch: PackedBatch, hidden: Tensor, head: Head) -> Tensor:
        sid_rows = cast(Policy, self.policy).sid_rows
        lesson = self.lesson(batch.histories)
        items = items_loss(batch, hidden, head.cut(*sid_rows), self.layout, **lesson)
        return items + _text_loss(batch, hidden, head)

    def rows(self, batch: PackedBatch) -> str:
        return "vocab" if len(batch.text_places) else "legal"


def items_loss(batch: PackedBatch, hidden: Tensor, head: Head, layout: Layout, **lesson: Any) -> Tensor:  # noqa: ANN401
    """Negative log-likelihood of all target items as completions without text; `lesson` is for `item_loss`."""
    rows, columns = batch.item_places.unbind(1)
    before = columns[:, None] + torch.arange(layout.length, device=columns.device) - 1
    return item_loss(Hidden(head, hidden[rows[:, None], before]), layout, batch.items[:, None], **lesson)


class ItemSFTModule(SupervisedModule):
    """Cross-entropy over the legal codes of all items of a row, for a policy that reads items."""

    def total(self, batch: SequenceBatch) -> Tensor:
        wanted = batch.items[batch.targets]
        lesson = {} if self.teacher is None else self.lesson(batch.histories)
        policy = cast(ItemPolicy, self.policy)
        return policy.along(batch.items, batch.targets, lambda said: said.loss(self.layout, wanted, **lesson))


def _text_loss(batch: PackedBatch, hidden: Tensor, head: Head) -> Tensor:
    """Negative log-likelihood of the words of text examples, with the whole head.

    Many of them are computed in parts, each again in the backward pass, as in `genrl.policy.score.place_scores`.
    """
    rows, columns = batch.text_places.unbind(1)
    if rows.numel() == 0:
        return hidden.new_zeros((), dtype=torch.float32)

    def part(rows: Tensor, columns: Tensor) -> Tensor:
        logits = head.logits(hidden[rows, columns - 1], 0, len(head.weight))
        return nn.functional.cross_entropy(logits, batch.tokens[rows, columns], reduction="sum")

    step = max(1, LOGITS // len(head.weight))
    parts = list(zip(rows.split(step), columns.split(step), strict=True))
    if len(parts) == 1:
        return part(rows, columns)
    return torch.stack([checkpoint(part, *each, use_reentrant=False) for each in parts]).sum()
