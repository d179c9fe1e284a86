"""Context: the text of a trace that stands in the prompt, to be read instead of written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genrl.config.schema import ActivateConfig
from genrl.errors import DataError
from genrl.prompts.packing import Segment, SegmentPlanner, known
from genrl.prompts.template import PromptMaker
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


class ContextBatches(SegmentPlanner):
    """The optimiser steps of stage `activate` for prompts with context: a segment is a prompt and the item behind it.

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
        self.where, self.maker, self.config = where, maker, config
        self.steps_per_epoch = -(-len(where) // config.examples_per_step)
        super().__init__(maker.template, maker.longest + maker.template.levels, config.pack_length, rank, world)

    def plan(self, epoch: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.where), generator=generator).tensor_split(self.steps_per_epoch)

    def segments(self, planned: Tensor) -> list[Segment]:
        prompts = self.maker.at(self.where[planned])
        segments = []
        for tokens, mask, item in zip(prompts.tokens, prompts.mask, prompts.targets.items[:, 0], strict=True):
            text = torch.cat([tokens[mask], self.template.sid_tokens[item]])
            segments.append(Segment(text.numpy(), (mask.sum()[None]).numpy(), item[None].numpy()))
        return segments
