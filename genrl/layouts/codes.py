"""A completion is K SID tokens, any code at each level: for models whose catalogue nobody has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Requests, State
from genrl.errors import UnsupportedError
from genrl.layouts.base import BROKEN, ENDED, Kind, Layout, Legal, Reading, TokenRanges
from genrl.layouts.items import ItemState, cut


class CodesLayout(Layout):
    """K SID tokens without a trie: every code may follow every prefix.

    There is no catalogue, so an item is the number of its codes, (a * size_2 + b) * size_3 + c for three levels, and
    the node of a state is the number of the codes so far. It is made in Python and has no name in a configuration:
    training and evaluation of genrl know their catalogue, which the layout `sid` keeps to.

    Args:
        tokens: of the tokenizer.
        device: of its tables.

    Raises:
        UnsupportedError: if the numbers of items do not fit into 63 bits.
    """

    def __init__(self, tokens: TokenRanges, device: str | torch.device = "cpu") -> None:
        self.tokens = tokens
        self.completions = math.prod(tokens.sizes)
        if self.completions >= 2**63:
            raise UnsupportedError(f"SIDs of {list(tokens.sizes)} codes have no number of 63 bits. Use fewer levels.")
        self.steps = self.length = len(tokens.sizes)
        item: Kind = "item"
        self.kinds = (item,) * self.length
        self.widest = max(tokens.sizes)
        self.codes = torch.empty(0, self.length, dtype=torch.int64, device=device)
        self._first = torch.tensor(tokens.first_ids, device=device)
        self._sizes = torch.tensor(tokens.sizes, device=device)

    @override
    def to(self, device: str | torch.device) -> CodesLayout:
        return self if torch.device(device) == self.codes.device else CodesLayout(self.tokens, device)

    @override
    def start(self, requests: int, group: int = 1) -> ItemState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        return ItemState(torch.zeros_like(owner), owner, torch.zeros_like(owner))

    @override
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        if requests is not None and (requests.pool is not None or requests.deny is not None):
            raise UnsupportedError("without a catalogue there are no items to filter. Use the layout `sid` for that.")
        mask = torch.ones(1, self.tokens.sizes[site], dtype=torch.bool, device=self.codes.device)
        return Legal(mask, self.tokens.first_ids[site], level=site)

    @override
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> ItemState:
        assert isinstance(state, ItemState) and site is not None  # noqa: PT018 (completions keep in step)
        size, codes = self.tokens.sizes[site], tokens - self.tokens.first_ids[site]
        wrong = (state.node < 0) | (codes < 0) | (codes >= size)
        behind = site + 1 if site + 1 < self.length else ENDED
        node = torch.where(wrong, -1, state.node * size + codes)
        return ItemState(torch.where(wrong, BROKEN, behind), state.owner, node)

    @override
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        codes = tokens - self._first
        codes = torch.where((codes >= 0) & (codes < self._sizes), codes, -1)
        numbers = torch.zeros_like(tokens[:, 0])
        for size, column in zip(self.tokens.sizes, codes.unbind(1), strict=True):
            numbers = numbers * size + column
        items = torch.where((codes < 0).any(1) | (states.site[:, -1] < 0), -1, numbers)
        steps = torch.arange(self.length, device=tokens.device).repeat(len(tokens), 1)
        return Reading(steps, torch.zeros_like(tokens), codes, items[:, None])

    @override
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        left, columns = items[:, 0], []
        for size in reversed(self.tokens.sizes):
            columns.append(left % size)
            left = left // size
        return torch.stack(columns[::-1], dim=1) + self._first

    @override
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        assert isinstance(state, ItemState)
        items = torch.where(state.site == ENDED, state.node, -1).view(scores.shape)
        return cut(items, scores, width)
