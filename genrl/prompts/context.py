"""Context: the text of a trace that stands in the prompt, to be read instead of written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genrl.config.schema import ActivateConfig
from genrl.errors import DataError
from genrl.prompts.packing import PackedBatch, Segment, pack
from genrl.prompts.prompts import PromptMaker
from genrl.prompts.reasoning import known
from genrl.prompts.template_traces import Template


class TemplateContext:
    """What template traces would say if the latest item of a history were the target.

    It comes from the history alone, so it is the same in training and for a user who asks. Histories without items
    have no context.

    Args:
        template: writes the blocks.
        tokenizer: of the policy.
        length: tokens per SID level at most.
        levels: K.
    """

    def __init__(self, template: Template, tokenizer: Any, length: int, levels: int) -> None:  # noqa: ANN401
        self.template = template
        self.tokenizer = tokenizer
        self.length = length
        self.longest = length * levels
        """Tokens of the longest context there may be."""
        self._ids: dict[str, list[int]] = {"": []}

    def describe(self) -> dict[str, int]:
        """Its length, and the words of a block."""
        return {"length": self.length, "words": self.template.words}

    def __call__(self, histories: Tensor) -> list[list[int]]:
        """Token ids behind each history [P, H] (right-aligned, -1 pads)."""
        texts = self.template.blocks(histories[:, -1].clamp(min=0), histories)
        shown = [blocks if last >= 0 else () for blocks, last in zip(texts, histories[:, -1].tolist(), strict=True)]
        new = sorted({block for blocks in shown for block in blocks} - self._ids.keys())
        if new:
            self._ids |= zip(new, known(self.tokenizer, new), strict=True)
        return [[one for block in blocks for one in self._ids[block][: self.length]] for blocks in shown]


class ContextBatches:
    """The optimiser steps of stage `activate` for prompts with context; a step depends on (seed, step) alone.

    A segment is a prompt with its context and the item behind it.

    Args:
        where: [N] positions of the target items.
        maker: makes the prompts.
        config: the activate section.
        rank: this process.
        world: number of processes.

    Raises:
        DataError: without positions.
    """

    def __init__(
        self, where: Tensor, maker: PromptMaker, config: ActivateConfig, rank: int = 0, world: int = 1
    ) -> None:
        if not len(where):
            raise DataError("stage activate has nothing to learn: every interaction is held out. Check data.split.")
        self.where = where
        self.maker = maker
        self.config = config
        self.rank, self.world = rank, world
        self.alone = False
        """One segment per row, for models whose layers do not take the mask that keeps segments apart."""
        self.steps_per_epoch = -(-len(where) // config.examples_per_step)
        self.levels = maker.template.sid_tokens.shape[1]
        self.longest = maker.longest + self.levels
        """Tokens of the longest segment there may be."""
        self.length = max(config.pack_length, self.longest)

    def step(self, index: int) -> PackedBatch:
        """The batch of optimiser step `index`, counted from the start of the stage."""
        epoch, within = divmod(index, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        rows = torch.randperm(len(self.where), generator=generator).tensor_split(self.steps_per_epoch)[within]
        prompts = self.maker.at(self.where[rows[self.rank :: self.world]])
        items = prompts.wanted.items[:, 0]
        segments = []
        for tokens, mask, item in zip(prompts.tokens, prompts.mask, items, strict=True):
            text = torch.cat([tokens[mask], self.maker.template.sid_tokens[item]])
            segments.append(Segment(text.numpy(), (mask.sum()[None]).numpy(), item[None].numpy()))
        share = len(rows) * self.levels
        return pack(segments, self.length, self.maker.template.pad_id, share, alone=self.alone)
