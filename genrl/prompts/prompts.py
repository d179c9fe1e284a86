"""Prompts: one place that turns a history into tokens, for SFT, RL, evaluation and recommendation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.batches import Requests, Targets
from genrl.catalog.dataset import Dataset


@dataclass(frozen=True)
class PromptTemplate:
    """The tokens around a history: start token, prefix, then the SIDs of the items, oldest first.

    The same sequence is what SFT packs, so a prompt at any position is a prefix of what the model was trained on.
    """

    start_id: int
    prefix_ids: tuple[int, ...]
    sid_tokens: Tensor
    """[I, K] int64 SID tokens of each catalogue row."""
    pad_id: int

    @property
    def head(self) -> Tensor:
        """Tokens before the first item [h]."""
        return torch.tensor([self.start_id, *self.prefix_ids])

    def render(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Histories [P, H] (right-aligned, -1 pads) -> tokens and mask [P, L], left-padded to the longest prompt."""
        rows, places = histories.shape
        levels = self.sid_tokens.shape[1]
        head = self.head
        counts = (histories >= 0).sum(1)
        body = self.sid_tokens[histories.clamp(min=0)].reshape(rows, places * levels)
        tokens = torch.full((rows, head.numel() + places * levels), self.pad_id)
        tokens[:, head.numel() :] = body
        start = (places - counts) * levels  # the head stands right before the first item of each row
        tokens.scatter_(1, start[:, None] + torch.arange(head.numel()), head.expand(rows, -1))
        mask = torch.arange(tokens.shape[1]) >= start[:, None]
        longest = int(mask.sum(1).max()) if rows else 0
        tokens, mask = tokens[:, tokens.shape[1] - longest :], mask[:, mask.shape[1] - longest :]
        return tokens.masked_fill(~mask, self.pad_id), mask


@dataclass(frozen=True)
class PromptMaker:
    """Prompts of histories, and at positions of a data set."""

    dataset: Dataset
    template: PromptTemplate
    max_history: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt there may be."""
        return len(self.template.head) + self.max_history * self.template.sid_tokens.shape[1]

    def render(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Histories [P, H] (right-aligned, -1 pads) -> tokens and mask [P, L], left-padded to the longest prompt."""
        return self.template.render(histories)

    def at(self, positions: Tensor) -> Requests:
        """The prompts whose targets stand at `positions` [P]."""
        sequences = self.dataset.sequences
        tokens, mask = self.render(sequences.histories(positions, max(self.max_history, 1)))
        return Requests(tokens, mask, self.full_history(positions), Targets(sequences.items[positions][:, None]))

    def full_history(self, positions: Tensor) -> Tensor:
        """Everything the users saw before `positions`, as far as the longest of them reaches back: [P, H]."""
        sequences = self.dataset.sequences
        starts = sequences.offsets[sequences.users(positions)]
        longest = int((positions - starts).max()) if positions.numel() else 0
        return sequences.histories(positions, max(longest, 1))


class EvaluationBatches:
    """Prompts of evaluation rows in batches of similar length, shared out over ranks.

    Args:
        maker: makes the prompts.
        positions: [R] target positions.
        batch: rows per batch.
        rank: this process.
        world: number of processes.
    """

    def __init__(self, maker: PromptMaker, positions: Tensor, batch: int, rank: int = 0, world: int = 1) -> None:
        self.maker = maker
        sequences = maker.dataset.sequences
        lengths = (positions - sequences.offsets[sequences.users(positions)]).clamp(max=maker.max_history)
        order = lengths.argsort(stable=True)
        self.rows = order[rank::world].split(batch)
        self.positions = positions
        self.batch = batch

    def share(self, rank: int, world: int) -> EvaluationBatches:
        """The rows of one rank."""
        return EvaluationBatches(self.maker, self.positions, self.batch, rank, world)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Requests]:
        for rows in self.rows:
            yield self.maker.at(self.positions[rows])
