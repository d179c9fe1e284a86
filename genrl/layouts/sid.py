"""A completion is the SID of one item: K tokens, each its own step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Requests, State
from genrl.layouts.base import BROKEN, ENDED, LAYOUTS, Kind, Layout, Legal, Reading, Words
from genrl.layouts.items import Items, ItemState


@dataclass(frozen=True)
class SidLayoutConfig:
    """Options of the layout `sid`: none; the SID table says how many levels there are."""


@LAYOUTS.register("sid", config=SidLayoutConfig, title="Semantic ID tokens only", paper="TIGER, arXiv:2305.05065")
class SidLayout(Layout):
    """K constrained SID tokens.

    The state before a token is the trie node of the codes so far, so the legal set of every token is the children of
    that node. SID tokens of one level have contiguous ids, so a level needs only its own rows of the output head.
    """

    def __init__(self, config: SidLayoutConfig, *, catalogue: Items, words: Words | None = None) -> None:
        self.config = config
        self.catalogue = catalogue
        self.tokens = catalogue.tokens
        self.codes = catalogue.codes
        self.steps = self.length = catalogue.levels
        item: Kind = "item"
        self.kinds = (item,) * self.length
        self.widest = max(self.tokens.sizes)
        self._sizes = torch.tensor(self.tokens.sizes, device=self.codes.device)
        self.completions = catalogue.distinct

    @override
    def to(self, device: str | torch.device) -> SidLayout:
        if torch.device(device) == self.codes.device:
            return self
        return SidLayout(self.config, catalogue=self.catalogue.to(device))

    @override
    def start(self, requests: int, group: int = 1) -> ItemState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        return ItemState(torch.zeros_like(owner), owner, torch.zeros_like(owner))

    @override
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        assert isinstance(state, ItemState)
        return self.catalogue.legal(site, state.node, state.owner, requests)

    @override
    def narrow(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        assert isinstance(state, ItemState)
        return self.catalogue.narrow(site, state.node, state.owner, requests)

    @override
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> ItemState:
        assert isinstance(state, ItemState) and site is not None  # noqa: PT018 (completions keep in step)
        node = self.catalogue.child(site, state.node, tokens)
        behind = site + 1 if site + 1 < self.length else ENDED
        return ItemState(torch.where(node < 0, BROKEN, behind), state.owner, node)

    @override
    def settled(self, state: State, site: int | None = None) -> Tensor:
        assert isinstance(state, ItemState) and site is not None  # noqa: PT018
        return self.catalogue.trie.leaves_below(site, state.node.clamp(min=0)) == 1

    @override
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        """What completions say; a broken prefix has codes but no item."""
        assert isinstance(states, ItemState)
        codes = tokens - self.catalogue.first
        codes = torch.where((codes >= 0) & (codes < self._sizes), codes, -1)
        leaves = self.catalogue.child(self.length - 1, states.node[:, -1], tokens[:, -1])
        leaves = torch.where(states.site[:, -1] < 0, -1, leaves)
        steps = torch.arange(self.length, device=tokens.device).repeat(len(tokens), 1)
        items = self.catalogue.named(leaves[:, None], states.owner[:, -1], requests)
        return Reading(steps, torch.zeros_like(tokens), codes, items)

    @override
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        return self.catalogue.render(items[:, 0])

    @override
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        assert isinstance(state, ItemState)
        leaves = torch.where(state.site == ENDED, state.node, -1).view(scores.shape)
        return self.catalogue.rank(leaves, scores, width, requests)

    @override
    def only(self, keep: Tensor) -> SidLayout:
        return SidLayout(self.config, catalogue=self.catalogue.only(keep))
