"""Prompts: one place that turns a history into tokens, for SFT, RL, evaluation and recommendation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from genrl.batches import Requests, Targets
from genrl.catalog.dataset import Dataset
from genrl.catalog.pools import Pools
from genrl.ops import left_padded, read_as


@dataclass(frozen=True)
class RequestTemplate(ABC):
    """How requests are written, whatever the text."""

    start_id: int
    prefix_ids: tuple[int, ...]
    sid_tokens: Tensor
    """[I, K] int64 SID tokens of each catalogue row."""
    pad_id: int

    @property
    def head(self) -> Tensor:
        """[h] int64 tokens before the first item."""
        return torch.tensor([self.start_id, *self.prefix_ids])

    @property
    def levels(self) -> int:
        """Tokens of a SID (K)."""
        return self.sid_tokens.shape[1]

    @abstractmethod
    def longest(self, items: int) -> int:
        """Tokens of the longest text of so many items."""

    @abstractmethod
    def ask(self, history: Tensor, user: str | None, pool: Tensor, ages: Tensor | None) -> Tensor:
        """The prompt [t] of a history [n], of a user who may be known, with the candidates [C] that are listed.

        `ages` [n] are the days from each item of the history to the latest, for prompts that tell them.
        """

    @property
    def tells_days(self) -> bool:
        """Whether prompts say how many days ago something was chosen."""
        return False

    @abstractmethod
    def check_users(self, users: Sequence[str]) -> None:
        """Refuse what is said of users if it is about none of these."""

    def render(
        self,
        histories: Tensor,
        users: Sequence[str] = (),
        pool: Tensor | None = None,
        ages: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Histories [P, H] (right-aligned, -1 pads), with ids of users, pools [P, C] and days [P, H] if there are some.

        Returns:
            Tokens and mask [P, L], left-padded to the longest prompt.
        """
        if not len(histories):
            return torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.bool)
        pools = histories[:, :0] if pool is None else pool
        texts = [
            self.ask(
                history[history >= 0],
                users[row] if users else None,
                listed[listed >= 0],
                None if ages is None else ages[row][history >= 0],
            )
            for row, (history, listed) in enumerate(zip(histories, pools, strict=True))
        ]
        return left_padded(texts, self.pad_id)


@dataclass(frozen=True)
class PromptTemplate(RequestTemplate):
    """The text of a sequence of items: start token, prefix, then the SIDs of the items, oldest first.

    SFT packs the same text, so a prompt at any position is a prefix of what the model was trained on. Another text is a
    subclass with its own `write` and `longest`, in which all before the SID of an item is the prompt for that item.
    Prompts say nothing of users and pools.
    """

    def write(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Catalogue rows [n] -> their text [t], and where in it the SID of each begins [n]."""
        head = self.head
        return torch.cat([head, self.sid_tokens[items].flatten()]), len(head) + torch.arange(len(items)) * self.levels

    def longest(self, items: int) -> int:
        return len(self.head) + items * self.levels

    def ask(self, history: Tensor, user: str | None, pool: Tensor, ages: Tensor | None) -> Tensor:
        return self.write(history)[0]

    def check_users(self, users: Sequence[str]) -> None:
        pass


@dataclass(frozen=True)
class ItemTemplate(PromptTemplate):
    """One token per item behind the start token, for a policy with a vector for every item: item i is start + 1 + i."""

    def write(self, items: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([self.head, items + self.start_id + 1]), len(self.head) + torch.arange(len(items))

    def longest(self, items: int) -> int:
        return len(self.head) + items

    def render(
        self,
        histories: Tensor,
        users: Sequence[str] = (),
        pool: Tensor | None = None,
        ages: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        longest = int((histories >= 0).sum(1).max()) if len(histories) else 0
        inputs = read_as(functional.pad(histories[:, histories.shape[1] - longest :], (0, 1), value=0))
        return torch.where(inputs < 0, self.pad_id, inputs + self.start_id), inputs >= 0


@dataclass(frozen=True)
class PromptMaker:
    """Prompts of histories, and at positions of a data set."""

    dataset: Dataset
    template: RequestTemplate
    max_history: int
    pools: Pools | None = None
    """Makes the candidate pool of each request; None: every request may get the whole catalogue."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt there may be."""
        return self.template.longest(self.max_history)

    def at(self, positions: Tensor) -> Requests:
        """The prompts whose targets stand at `positions` [P]."""
        sequences = self.dataset.sequences
        pool = None if self.pools is None else self.pools.at(positions).items
        users = [sequences.user_ids[user] for user in sequences.users(positions).tolist()]
        shown = max(self.max_history, 1)
        ages = sequences.ages(positions, shown) if self.template.tells_days else None
        tokens, mask = self.template.render(sequences.histories(positions, shown), users, pool, ages)
        feedback = {name: values[positions][:, None] for name, values in sequences.feedback.items()}
        targets = Targets(sequences.items[positions][:, None], feedback, sequences.tied[positions][:, None])
        return Requests(tokens, mask, self.full_history(positions), targets, pool)

    def full_history(self, positions: Tensor) -> Tensor:
        """Everything the users saw before `positions`, as far as the longest of them reaches back: [P, H]."""
        sequences = self.dataset.sequences
        longest = int(sequences.seen(positions).max()) if positions.numel() else 0
        return sequences.histories(positions, max(longest, 1))


class EvaluationBatches:
    """Prompts of target positions [R] in batches of similar length, shared out over ranks."""

    def __init__(self, maker: PromptMaker, positions: Tensor, batch: int, rank: int = 0, world: int = 1) -> None:
        self.maker = maker
        lengths = maker.dataset.sequences.seen(positions).clamp(max=maker.max_history)
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
