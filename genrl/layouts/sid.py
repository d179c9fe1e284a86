"""A completion is the SID of one item: K tokens, each its own step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genrl.errors import DataError, UnsupportedError
from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal
from genrl.layouts.filters import make_filter
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
        self.sizes = tuple(level.size for level in trie.levels)
        self.num_steps = self.length = trie.depth
        self._first = torch.tensor(first_ids, device=codes.device)

    def to(self, device: str) -> SidLayout:
        """The layout with its tables on another device."""
        if torch.device(device) == self.codes.device:
            return self
        return SidLayout(self.config, trie=self.trie.to(device), first_ids=self.first_ids, codes=self.codes.to(device))

    def start(self, rows: int) -> Tensor:
        """The root for every row."""
        return torch.zeros(rows, dtype=torch.int64, device=self.codes.device)

    def legal(self, site: int, states: Tensor) -> Legal:
        """Children of each node."""
        return Legal(self.first_ids[site], self.trie.legal(site, states))

    def advance(self, site: int, states: Tensor, tokens: Tensor) -> Tensor:
        """The child behind each token."""
        return self.trie.child(site, states, tokens - self.first_ids[site])

    def settled(self, site: int, states: Tensor) -> Tensor:
        """Whether a single SID begins like this."""
        return self.trie.leaves_below(site, states) == 1

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

    def step_ids(self, support: Tensor) -> Tensor:
        """Every token is its own step."""
        return torch.arange(self.length, device=support.device).expand_as(support)

    @property
    def widest(self) -> int:
        """Codes of the largest codebook."""
        return max(self.sizes)

    @property
    def completions(self) -> int:
        """Number of distinct SIDs."""
        return self.trie.leaves

    def only(self, keep: Tensor) -> SidLayout:
        """The layout of the items `keep` [I]; takes time in proportion to the catalogue."""
        if keep.shape != self.codes.shape[:1]:
            raise DataError(
                f"a filter of shape {list(keep.shape)} for {len(self.codes)} items: give one bool per item."
            )
        return PartialSidLayout(self, keep)

    def filtered(self, *, allow: Tensor | None = None, deny: Tensor | None = None) -> FilteredSidLayout:
        """The layout of a batch of requests with their own items; what it costs depends on the lists alone."""
        return FilteredSidLayout(self, allow, deny)

    @cached_property
    def places(self) -> Tensor:
        """[I] int32: place of each catalogue row in the trie's `leaf_items`, -1 for items that are not in the trie."""
        leaf_items = self.trie.leaf_items
        places = leaf_items.new_full((len(self.codes),), -1)
        places[leaf_items.long()] = torch.arange(len(leaf_items), dtype=places.dtype, device=places.device)
        return places


class PartialSidLayout(SidLayout):
    """K constrained SID tokens of some items of a catalogue, the same for all requests.

    Args:
        whole: the layout of the catalogue.
        keep: [I] bool: catalogue rows that stay.
    """

    def __init__(self, whole: SidLayout, keep: Tensor) -> None:
        super().__init__(whole.config, trie=whole.trie.subset(keep), first_ids=whole.first_ids, codes=whole.codes)
        self.whole = whole
        self.keep = keep
        self.nodes = self.trie.nodes_in(whole.trie)

    def to(self, device: str) -> SidLayout:
        """The layout with its tables on another device."""
        if torch.device(device) == self.codes.device:
            return self
        return PartialSidLayout(self.whole.to(device), self.keep.to(device))

    def legal(self, site: int, states: Tensor) -> Legal:
        """Children of each node that lead to an item that stays."""
        whole = self.whole.legal(site, self.nodes[site][states].long())
        mask = self.trie.legal(site, states)
        return Legal(whole.first, mask, whole.mask if whole.within is None else whole.within)

    def settled(self, site: int, states: Tensor) -> Tensor:
        """Whether a single SID of the whole catalogue begins like this."""
        return self.whole.settled(site, self.nodes[site][states].long())


class FilteredSidLayout(SidLayout):
    """K constrained SID tokens, where each of P requests has its own items.

    `advance` and `decode` know the whole trie: a search that draws legal tokens stays inside the filter.

    Args:
        layout: the layout of the catalogue.
        allow: [P, M] catalogue rows, or None; see `Layout.filtered`.
        deny: [P, M] catalogue rows, or None.
    """

    def __init__(self, layout: SidLayout, allow: Tensor | None, deny: Tensor | None) -> None:
        super().__init__(layout.config, trie=layout.trie, first_ids=layout.first_ids, codes=layout.codes)
        self.layout = layout
        self.allow = allow
        self.deny = deny
        self.filter = make_filter(layout.trie, layout.places, allow, deny)

    def to(self, device: str) -> FilteredSidLayout:
        """The layout with its tables on another device."""
        allow, deny = (None if rows is None else rows.to(device) for rows in (self.allow, self.deny))
        return FilteredSidLayout(self.layout.to(device), allow, deny)

    def legal(self, site: int, states: Tensor) -> Legal:
        """Children of each node that lead to an item of the row's request."""
        whole = self.layout.legal(site, states)
        mask = self.filter.legal(site, states, whole.mask)
        return Legal(whole.first, mask, whole.mask if whole.within is None else whole.within)

    def settled(self, site: int, states: Tensor) -> Tensor:
        """Whether a single SID of the whole catalogue begins like this."""
        return self.layout.settled(site, states)

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Leaves [P, W] to the items among them that the request may get."""
        return self.filter.rank(leaves, scores, width)

    def only(self, keep: Tensor) -> FilteredSidLayout:
        """The layout of some items, with the same filters."""
        return FilteredSidLayout(self.layout.only(keep), self.allow, self.deny)

    def filtered(self, *, allow: Tensor | None = None, deny: Tensor | None = None) -> FilteredSidLayout:
        """Refused: filters do not add up."""
        raise UnsupportedError("the layout is filtered already: give `allow` and `deny` of a batch in one call.")

    def requests(self, rows: Tensor) -> FilteredSidLayout:
        """The layout for some of the requests."""
        allow, deny = (None if given is None else given[rows] for given in (self.allow, self.deny))
        return FilteredSidLayout(self.layout, allow, deny)

    @property
    def completions(self) -> int:
        """Number of distinct SIDs of the request that has most."""
        return int(self.filter.completions.max())
