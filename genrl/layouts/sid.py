"""A completion is the SID of one item: K tokens, each its own step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal
from genrl.sid.trie import Trie


@dataclass(frozen=True)
class SidLayoutConfig:
    """Options of the layout `sid`: none; the SID table says how many levels there are."""


@LAYOUTS.register("sid", config=SidLayoutConfig, title="Semantic ID tokens only", paper="TIGER, arXiv:2305.05065")
class SidLayout(Layout):
    """K constrained SID tokens.

    The state before position t is the trie node of the codes so far, so the legal set of every token is the children
    of that node. SID tokens of one level have contiguous ids, so a level needs only its own rows of the output head.

    Args:
        config: options.
        trie: the catalogue's trie.
        first_ids: [K] token id of code 0 of each level.
        codes: [I, K] SID of each catalogue row.
    """

    def __init__(self, config: SidLayoutConfig, *, trie: Trie, first_ids: tuple[int, ...], codes: Tensor) -> None:
        self.config = config
        self.trie = trie
        self.first_ids = first_ids
        self.codes = codes
        self.num_steps = self.length = trie.depth
        self._first = torch.tensor(first_ids, device=codes.device)

    def to(self, device: str) -> SidLayout:
        """The layout with its tables on another device."""
        return SidLayout(self.config, trie=self.trie.to(device), first_ids=self.first_ids, codes=self.codes.to(device))

    def start(self, rows: int) -> Tensor:
        """The root for every row."""
        return torch.zeros(rows, dtype=torch.int64, device=self.codes.device)

    def legal(self, position: int, states: Tensor) -> Legal:
        """Children of each node."""
        return Legal(self.first_ids[position], self.trie.legal(position, states))

    def advance(self, position: int, states: Tensor, tokens: Tensor) -> Tensor:
        """The child behind each token."""
        return self.trie.child(position, states, tokens - self.first_ids[position])

    def decode(self, tokens: Tensor) -> Decoded:
        """Codes, catalogue rows and leaves of completions [B, T]; a broken prefix has choices but no item."""
        nodes = self.start(tokens.shape[0])
        choices = []
        for level in range(self.length):
            code = tokens[:, level] - self.first_ids[level]
            inside = (code >= 0) & (code < self.trie.levels[level].size)
            choices.append(torch.where(inside, code, -1))
            nodes = torch.where(nodes < 0, -1, self.trie.child(level, nodes.clamp(min=0), code))
        return Decoded(torch.stack(choices, dim=1), self.trie.items(nodes)[:, None], nodes)

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Leaves to items; items that share a SID stand next to each other, the most popular first."""
        return self.trie.expand(leaves, scores, width)

    def render(self, items: Tensor) -> Tensor:
        """SID tokens of catalogue rows."""
        return self.codes[items] + self._first

    def codes_of_items(self) -> Tensor:
        """SID codes of the catalogue."""
        return self.codes

    def step_ids(self) -> Tensor:
        """Every token is its own step."""
        return torch.arange(self.length, device=self.codes.device)

    @property
    def widest(self) -> int:
        """Codes of the largest codebook."""
        return max(level.size for level in self.trie.levels)

    @property
    def completions(self) -> int:
        """Number of distinct SIDs."""
        return self.trie.leaves
