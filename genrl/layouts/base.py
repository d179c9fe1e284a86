"""The grammar of a completion, as a batched automaton over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.errors import UnsupportedError
from genrl.registry import Registry

LAYOUTS: Registry[Layout] = Registry("layout", "genrl.layouts")


@dataclass(frozen=True)
class Legal:
    """What may come next: a contiguous range of the vocabulary and, per row, which of it is allowed."""

    first: int
    """Token id of column 0."""
    mask: Tensor
    """[n, columns] bool; no row is empty."""
    within: Tensor | None = None
    """[n, columns] bool: what would be allowed without a filter of items; None where there is no filter."""


@dataclass(frozen=True)
class Decoded:
    """What completions say."""

    choices: Tensor
    """[B, S] int64: what each step chose; -1 invalid."""
    items: Tensor
    """[B, N] int64 catalogue rows; -1 is no item."""
    leaves: Tensor
    """[B] int64 final states: equal leaves are equal completions."""


class Layout(ABC):
    """The grammar of a completion. Sampling, beam search, scoring and SFT all use the same automaton.

    A state is an int64 per row, so beams reorder states by indexing. The state before a token is that token's
    *support*: it names the set the token is drawn from, and scoring rebuilds exactly that set from it.
    """

    first_ids: tuple[int, ...]
    """Token id of code 0 of each SID level, as the tokenizer has them that completions are written with."""
    sizes: tuple[int, ...]
    """Codes of each SID level."""
    num_steps: int
    """S: units of credit in a completion."""
    length: int
    """T: tokens of a completion."""
    thinking: bool = False
    """Whether completions hold free text before the items."""

    @abstractmethod
    def to(self, device: str) -> Layout:
        """The layout with its tables on another device."""

    @abstractmethod
    def start(self, rows: int) -> Tensor:
        """States [rows] before the first token."""

    @abstractmethod
    def legal(self, position: int, states: Tensor) -> Legal:
        """What may stand at `position` after `states` [n]."""

    @abstractmethod
    def advance(self, position: int, states: Tensor, tokens: Tensor) -> Tensor:
        """States after `tokens` [n] at `position`; -1 after an illegal token."""

    def settled(self, position: int, states: Tensor) -> Tensor:
        """Whether only one completion is left after `states` [n], so that all tokens from `position` on are forced.

        Such rows need no more of the model. What is left counts without filters of items; no row is settled unless a
        layout says so.
        """
        return torch.zeros_like(states, dtype=torch.bool)

    @abstractmethod
    def decode(self, tokens: Tensor) -> Decoded:
        """What the completions [B, T] say."""

    @abstractmethod
    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ranked final states [P, W] -> ranked items [P, width] and their scores."""

    @abstractmethod
    def render(self, items: Tensor) -> Tensor:
        """Gold completions of catalogue rows [n] -> tokens [n, T]."""

    def filtered(self, *, allow: Tensor | None = None, deny: Tensor | None = None) -> Layout:
        """The layout of a batch of P requests with their own items.

        `legal` and `rank` of the filtered layout take the rows of the requests one request after the other, equally
        many of each.

        Args:
            allow: [P, M] catalogue rows that a request may get, -1 pads; all where left out.
            deny: [P, M] catalogue rows that a request must not get, e.g. its history, -1 pads; none where left out.

        Raises:
            DataError: if a request has no item left, or a row is not in the catalogue.
        """
        raise UnsupportedError(f"{type(self).__name__} has no filters of items. Use the layout `sid`.")

    def only(self, keep: Tensor) -> Layout:
        """The layout of some items, for a filter that all requests share (in stock, cold items); rows stay.

        Args:
            keep: [I] bool: catalogue rows that stay.

        Raises:
            DataError: if none stays.
        """
        raise UnsupportedError(f"{type(self).__name__} has no filters of items. Use the layout `sid`.")

    def requests(self, rows: Tensor) -> Layout:
        """The layout for requests `rows` [n] of the batch that it is filtered for; itself if it is for any request."""
        return self

    @abstractmethod
    def codes_of_items(self) -> Tensor:
        """[I, K] SID codes of the catalogue: equal rows are one SID."""

    @abstractmethod
    def step_ids(self) -> Tensor:
        """Step of each position [T]; -1 is in none."""

    @property
    @abstractmethod
    def widest(self) -> int:
        """Columns of the widest legal set."""

    @property
    @abstractmethod
    def completions(self) -> int:
        """Number of distinct legal completions; where requests have their own items, of the one that has most."""
