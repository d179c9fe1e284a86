"""A completion is a slate: several items one behind the other, none of them twice, each its own step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import factorial
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Requests, State
from genrl.layouts.base import BROKEN, ENDED, LAYOUTS, Kind, Layout, Legal, Reading, Words
from genrl.layouts.items import Items, ItemState, check_enough, check_left, check_slates, cut
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.layouts.text import TextConfig, TextSlate
from genrl.layouts.titles import Titles
from genrl.options import option


@dataclass(frozen=True, slots=True)
class SlateState(ItemState):
    """A state with the items so far."""

    leaves: Tensor
    """[n, L] int64 leaf of each item in its place; -1 where none is written yet."""


@dataclass(frozen=True)
class SlateLayoutConfig:
    """Options of the layout `slate`."""

    length: int = option(10, ge=1)
    """Items of a slate (L)."""
    space: Literal["sid", "text"] = "sid"
    """How items are named: by their Semantic IDs, or by their titles, a line each."""
    text: TextConfig = field(default_factory=TextConfig)
    """Names of `space: text`."""


class SlateLayout(Layout):
    """L items of K constrained SID tokens each; step l is item l.

    A SID whose items all stand in the slate is not legal any more, so a completion is an ordered list of L different
    items. A SID that n items share may stand n times and names them one after the other, most popular first.

    Site l K + k is level k of item l. `Reading.codes` are the catalogue rows, because an item is what a step chooses.

    Raises:
        ConfigError: if there are fewer than L items.
        DataError: if a filter leaves fewer.
    """

    writes_slates = True

    def __init__(self, config: SlateLayoutConfig, *, catalogue: Items, words: Words | None = None) -> None:
        check_enough(int(catalogue.left(None)), config.length, catalogue.keep is not None)
        self.config = config
        self.catalogue = catalogue
        self.tokens = catalogue.tokens
        self.codes = catalogue.codes
        self.levels = catalogue.levels
        self.steps = self.items = config.length
        self.length = config.length * catalogue.levels
        item: Kind = "item"
        self.kinds = (item,) * self.length
        self.widest = max(self.tokens.sizes)
        self.completions = sequences(catalogue.stock.leaf_offsets.diff(), config.length)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"name": "slate", "length": self.items, "space": "sid"}

    @property
    @override
    def plain(self) -> SidLayout:
        return SidLayout(SidLayoutConfig(), catalogue=self.catalogue)

    @override
    def to(self, device: str | torch.device) -> SlateLayout:
        if torch.device(device) == self.codes.device:
            return self
        return SlateLayout(self.config, catalogue=self.catalogue.to(device))

    @override
    def only(self, keep: Tensor) -> SlateLayout:
        return SlateLayout(self.config, catalogue=self.catalogue.only(keep))

    @override
    def start(self, requests: int, group: int = 1) -> SlateState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        zero = torch.zeros_like(owner)
        return SlateState(zero, owner, zero, zero[:, None].expand(-1, self.items) - 1)

    @override
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        """Codes that lead to an item which is not in the slate yet.

        Raises:
            DataError: naming the first request that has fewer items left than a slate holds.
        """
        assert isinstance(state, SlateState)
        place, level = divmod(site, self.levels)
        if site == 0:
            check_left(self.catalogue.left(requests), self.items)
        taken = self.catalogue.named(state.leaves[:, :place], state.owner, requests) if place else None
        return self.catalogue.legal(level, state.node, state.owner, requests, taken)

    @override
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> SlateState:
        assert isinstance(state, SlateState) and site is not None  # noqa: PT018 (completions keep in step)
        place, level = divmod(site, self.levels)
        node = self.catalogue.child(level, state.node, tokens)
        node = torch.where(state.site < 0, -1, node)
        if level + 1 == self.levels:
            again = (state.leaves[:, :place] == node[:, None]).sum(1)
            node = torch.where(again < self.catalogue.stock.items_below(self.levels, node.clamp(min=0)), node, -1)
        behind = site + 1 if site + 1 < self.length else ENDED
        state = replace(state, site=torch.where(node < 0, BROKEN, behind), node=node)
        if level + 1 < self.levels:
            return state
        leaves = state.leaves.clone()
        leaves[:, place] = node
        return replace(state, node=node.clamp(max=0), leaves=leaves)

    @override
    def settled(self, state: State, site: int | None = None) -> Tensor:
        assert isinstance(state, SlateState) and site is not None  # noqa: PT018
        place, level = divmod(site, self.levels)
        if place + 1 < self.items:
            return torch.zeros_like(state.site, dtype=torch.bool)
        return self.catalogue.trie.leaves_below(level, state.node.clamp(min=0)) == 1

    @override
    def ends_item(self, site: int) -> bool:
        return (site + 1) % self.levels == 0 and site + 1 < self.length

    @override
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        """What completions say; one that breaks off names no item at all."""
        assert isinstance(states, SlateState)
        last = states.rows(torch.arange(len(tokens), device=tokens.device)).each(lambda value: value[:, -1])
        ended = self.advance(last, tokens[:, -1], self.length - 1)
        leaves = torch.where((ended.site == ENDED)[:, None], ended.leaves, -1)
        items = self.catalogue.named(leaves, ended.owner, requests)
        steps = (torch.arange(self.length, device=tokens.device) // self.levels).repeat(len(tokens), 1)
        return Reading(steps, steps, items, items)

    @override
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        """Gold slates of catalogue rows [n, L].

        Raises:
            DataError: naming the first that has another length, a gap or an item twice.
        """
        check_slates(items, self.items)
        return self.catalogue.render(items).flatten(1)

    @override
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        """The items of the best slate of each request in their order, all with the slate's score."""
        assert isinstance(state, SlateState)
        leaves = torch.where((state.site == ENDED)[:, None], state.leaves, -1)
        first = torch.arange(len(scores), device=scores.device)
        best = leaves.unflatten(0, scores.shape)[:, 0]
        items = self.catalogue.named(best, first, requests)
        return cut(items, scores[:, :1].expand_as(items), width)


@LAYOUTS.register(
    "slate", config=SlateLayoutConfig, title="Several items, none of them twice", paper="SAGE, arXiv:2601.21452"
)
class Slate:
    """The slate of an action space: a `SlateLayout`, or a `TextSlate` of the titles."""

    writes_slates = True

    def __new__(cls, config: SlateLayoutConfig, *, catalogue: Items | Titles, words: Words | None = None) -> Layout:  # type: ignore[misc]
        if isinstance(catalogue, Titles):
            return TextSlate(config.length, config.text, catalogue)
        return SlateLayout(config, catalogue=catalogue, words=words)


def sequences(sizes: Tensor, length: int) -> int:
    """Number of lists of `length` SIDs in which SID i stands at most sizes[i] times.

    It is length! times the coefficient of x^length in prod_i sum_{j <= sizes[i]} x^j / j! (exponential generating
    function); with sizes of 1 it is I! / (I - length)!.

    Example:
        >>> sequences(torch.tensor([1, 1, 1]), 2), sequences(torch.tensor([2, 1, 0]), 3)
        (6, 3)
    """
    total = [Fraction(1)]
    for size, count in zip(*(part.tolist() for part in sizes.unique(return_counts=True)), strict=True):
        power, base = count, [Fraction(1, factorial(j)) for j in range(min(size, length) + 1)]
        while power:
            total = _product(total, base, length) if power % 2 else total
            base, power = _product(base, base, length), power // 2
    return int(total[length] * factorial(length)) if length < len(total) else 0


def _product(one: list[Fraction], two: list[Fraction], degree: int) -> list[Fraction]:
    """Product of two polynomials up to a degree."""
    found = [Fraction(0)] * min(len(one) + len(two) - 1, degree + 1)
    for i, a in enumerate(one):
        for j, b in enumerate(two[: len(found) - i]):
            found[i + j] += a * b
    return found
