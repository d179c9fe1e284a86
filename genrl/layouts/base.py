"""The grammar of a completion, as a batched automaton over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from genrl.registry import Registry

LAYOUTS: Registry[Layout] = Registry("layout", "genrl.layouts")


@dataclass(frozen=True)
class Legal:
    """What may come next: a contiguous range of the vocabulary and, per row, which of it is allowed."""

    first: int
    """Token id of column 0."""
    mask: Tensor
    """[n, columns] bool; no row is empty."""


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

    @abstractmethod
    def decode(self, tokens: Tensor) -> Decoded:
        """What the completions [B, T] say."""

    @abstractmethod
    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ranked final states [P, W] -> ranked items [P, width] and their scores."""

    @abstractmethod
    def render(self, items: Tensor) -> Tensor:
        """Gold completions of catalogue rows [n] -> tokens [n, T]."""

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
        """Number of distinct legal completions."""
