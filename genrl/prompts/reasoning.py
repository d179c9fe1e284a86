"""Supervised batches of reasoning: a prompt, the thinking of a trace, the item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Batch, State, widened
from genrl.config.schema import ActivateConfig
from genrl.errors import DataError
from genrl.layouts.base import Layout
from genrl.prompts.packing import first_fit
from genrl.prompts.prompts import PromptMaker
from genrl.prompts.traces import Trace


@dataclass(frozen=True, slots=True)
class TraceBatch(Batch):
    """Rows of several segments each; segments do not see each other."""

    tokens: Tensor
    """[R, L] int64."""
    positions: Tensor
    """[R, L] int64, starting anew in each segment."""
    segments: Tensor
    """[R, L] int64 segment ids; -1 is padding."""
    places: Tensor
    """[n, 2] int64: row and column of each token that the policy is to choose."""
    states: State
    """Of [n]: where the layout stands before these tokens."""
    share: Tensor
    """[] float: such tokens of the whole step over all ranks; divides the loss."""


class TraceBatches:
    """The optimiser steps of stage `activate`; a step depends on (seed, step) alone.

    Args:
        traces: what is learned.
        maker: makes the prompts.
        layout: grammar of the completions, on the CPU.
        tokenizer: of the policy.
        config: the activate section.
        rank: this process.
        world: number of processes.

    Raises:
        DataError: without traces, or naming the first one that no completion can hold.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        maker: PromptMaker,
        layout: Layout,
        tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
        config: ActivateConfig,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not traces:
            raise DataError(
                "stage activate has no traces: every interaction is held out, or each trace names its target. Check "
                "data.split, or the file of traces."
            )
        self.maker = maker
        self.config = config
        self.rank, self.world = rank, world
        self.alone = False
        """One segment per row, for models whose layers do not take the mask that keeps segments apart."""
        self.where = torch.tensor([trace.position for trace in traces])
        blocks = [trace.blocks for trace in traces]
        texts = [text.strip() for parts in blocks for text in parts]
        ids = iter(known(tokenizer, texts))
        self.layout = layout
        self.blocks = [[next(ids) for _ in parts] for parts in blocks]
        self.items = maker.dataset.sequences.items[self.where]
        self.tokens = layout.compose(self.items[:, None], self.blocks)
        self.states = layout.replay(self.tokens)
        self.chosen = self._kind(self.states, "item", "word")
        self.steps_per_epoch = -(-len(traces) // config.examples_per_step)
        self.longest = maker.longest + self.tokens.shape[1]
        """Tokens of the longest segment there may be."""
        self.length = max(config.pack_length, self.longest)

    def step(self, index: int) -> TraceBatch:
        """The batch of optimiser step `index`, counted from the start of the stage."""
        epoch, within = divmod(index, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order, others = (torch.randperm(len(self.where), generator=generator) for _ in range(2))
        foreign = torch.rand(len(self.where), generator=generator) < self.config.foreign
        rows = order.tensor_split(self.steps_per_epoch)[within]
        thinking = torch.where(foreign, others, torch.arange(len(others)))[rows]
        tokens, states, chosen = self._completions(rows, thinking)
        mine, share = slice(self.rank, None, self.world), float(chosen.sum())
        return self._pack(self.where[rows[mine]], tokens[mine], states.rows(mine), chosen[mine], share)

    def _completions(self, rows: Tensor, thinking: Tensor) -> tuple[Tensor, State, Tensor]:
        """Traces `rows` [n] with the thinking of traces `thinking` [n]; of foreign thinking only the SID is learned.

        Returns:
            tokens, states before them and what is learned, each [n, T].
        """
        tokens, states, chosen = self.tokens[rows], self.states.rows(rows), self.chosen[rows].clone()
        foreign = (rows != thinking).nonzero()[:, 0]
        if foreign.numel():
            blocks = [self.blocks[row] for row in thinking[foreign].tolist()]
            other = widened(self.layout.compose(self.items[rows[foreign]][:, None], blocks), tokens.shape[1])
            there = self.layout.replay(other)
            tokens[foreign], chosen[foreign] = other, self._kind(there, "item")
            states = states.put(foreign, there)
        return tokens, states, chosen

    def _kind(self, states: State, *kinds: str) -> Tensor:
        """Places [n, T] where a token of these kinds comes next."""
        wanted = torch.tensor([kind in kinds for kind in self.layout.kinds])
        return (states.site >= 0) & wanted[states.site.clamp(min=0)]

    def _pack(self, where: Tensor, tokens: Tensor, states: State, chosen: Tensor, share: float) -> TraceBatch:
        prompts = self.maker.at(where)
        segments = []
        for row in range(len(where)):
            kept = int(chosen[row].nonzero()[-1]) + 1
            prompt = prompts.tokens[row][prompts.mask[row]]
            segments.append((torch.cat([prompt, tokens[row, :kept]]), len(prompt), row, kept))
        packed = first_fit([len(segment[0]) for segment in segments], self.length, self.alone)
        width = max((sum(len(segments[one][0]) for one in row) for row in packed), default=1)
        shape = (max(len(packed), 1), width)
        packed_tokens = torch.full(shape, self.maker.template.pad_id)
        positions, ids = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
        places, sources = ([torch.empty(0, 2, dtype=torch.int64)] for _ in range(2))
        for line, members in enumerate(packed):
            column = 0
            for number, one in enumerate(members):
                text, start, row, kept = segments[one]
                end = column + len(text)
                packed_tokens[line, column:end] = text
                positions[line, column:end] = torch.arange(len(text))
                ids[line, column:end] = number
                columns = chosen[row, :kept].nonzero()[:, 0]
                places.append(torch.stack([torch.full_like(columns, line), column + start + columns], dim=1))
                sources.append(torch.stack([torch.full_like(columns, row), columns], dim=1))
                column = end
        learned = torch.cat(sources).unbind(1)
        chosen_states = states.each(lambda value: value[learned])
        return TraceBatch(packed_tokens, positions, ids, torch.cat(places), chosen_states, torch.tensor(share))


def known(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Token ids of texts, without what the tokenizer has no token for; a text that comes again is read once."""
    unknown = tokenizer.unk_token_id
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    read = {text: [one for one in tokens if one != unknown] for text, tokens in zip(distinct, ids, strict=True)}
    return [read[text] for text in texts]
