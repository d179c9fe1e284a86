"""The grammar of a completion, as a batched automaton over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    codes: Tensor
    """[B, S] int64: what each step chose; -1 invalid."""
    items: Tensor
    """[B, N] int64 catalogue rows; -1 is no item."""
    leaves: Tensor
    """[B] int64 final states: equal leaves are equal completions."""


class Layout(ABC):
    """The grammar of a completion. Sampling, beam search, scoring and SFT all use the same automaton.

    A state is an int64 per row, so beams reorder states by indexing. The state before a token is that token's
    *support*: it names the set the token is drawn from, and scoring rebuilds exactly that set from it.

    What may stand at a place depends on its *site*: without thinking every place is a site of its own, so sites and
    positions are the same numbers. With thinking, completions reach the same site at different positions.
    """

    first_ids: tuple[int, ...]
    """Token id of code 0 of each SID level, as the tokenizer has them that completions are written with."""
    sizes: tuple[int, ...]
    """Codes of each SID level."""
    num_steps: int
    """S: units of credit in a completion."""
    length: int
    """T: tokens of the longest completion."""
    thinking: bool = False
    """Whether completions hold free text before the items."""

    @property
    def items(self) -> Layout:
        """The grammar of the items alone: the layout itself, unless it has thinking."""
        return self

    @abstractmethod
    def to(self, device: str) -> Layout:
        """The layout with its tables on another device."""

    @abstractmethod
    def start(self, rows: int) -> Tensor:
        """States [rows] before the first token."""

    @abstractmethod
    def legal(self, site: int, states: Tensor) -> Legal:
        """What may stand at `site` after `states` [n]."""

    @abstractmethod
    def advance(self, site: int, states: Tensor, tokens: Tensor) -> Tensor:
        """States after `tokens` [n] at `site`; -1 after an illegal token."""

    def settled(self, site: int, states: Tensor) -> Tensor:
        """Whether only one completion is left after `states` [n], so that all tokens from `site` on are forced.

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
    def step_ids(self, support: Tensor) -> Tensor:
        """Step of each token, by the states [B, T] before them; -1 is in none."""

    def item_mask(self, support: Tensor) -> Tensor:
        """[B, T] bool: tokens that decide an item, by the states before them."""
        return torch.ones_like(support, dtype=torch.bool)

    @property
    @abstractmethod
    def widest(self) -> int:
        """Columns of the widest legal set."""

    @property
    @abstractmethod
    def completions(self) -> int:
        """Number of distinct legal completions; where requests have their own items, of the one that has most."""


class ThinkingLayout(Layout):
    """The grammar of completions with free text before or between the SID tokens.

    Rows of a batch stand at different sites at one position; the state alone says at which. Sites below `num_steps`
    are SID levels, `fixed` is what is forced (marks, line breaks, padding), all others are words.
    """

    thinking = True
    fixed: int
    """Site of tokens that are nobody's choice."""

    @property
    @abstractmethod
    def items(self) -> Layout:
        """The grammar of the items alone: what is ranked once the thinking is written."""

    @abstractmethod
    def sites(self, states: Tensor) -> Tensor:
        """Site of the token behind each state [...]."""

    @abstractmethod
    def forced(self, states: Tensor) -> Tensor:
        """Tokens [n] at forced places; 0 behind the end."""

    @abstractmethod
    def finished(self, states: Tensor) -> Tensor:
        """Whether completions [...] have ended."""

    @abstractmethod
    def thought(self, states: Tensor) -> Tensor:
        """Whether a SID token is due in completions [...], or nothing any more."""

    @abstractmethod
    def closed(self, tokens: Tensor, support: Tensor) -> Tensor:
        """[B, S] bool: steps whose thinking was ended by choice in completions [B, T]."""

    @abstractmethod
    def compose(self, items: Tensor, blocks: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Completions of catalogue rows [n] with given thinking -> tokens and the states before them, [n, T]."""
