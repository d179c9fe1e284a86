"""Which items each request of a batch may get, at a cost that does not depend on the size of the catalogue."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from genrl.errors import DataError
from genrl.sid.trie import Trie


class Filter(ABC):
    """Marks edges of the trie for each of P requests that list M items.

    Args:
        trie: the catalogue's trie.
        places: [P, M] places of the listed items in `trie.leaf_items`, in any order; -1 is none.
    """

    def __init__(self, trie: Trie, places: Tensor) -> None:
        self.trie = trie
        absent = trie.leaf_items.numel()
        places = _distinct(places, absent)
        self.exists = places < absent
        """[P, M] bool: listed items that are in the trie, each once."""
        self.items = torch.where(self.exists, trie.leaf_items[places.clamp(max=absent - 1)].long(), -1)
        """[P, M] their catalogue rows, in the order of the trie; -1 pads."""
        nodes = trie.ancestors(places.clamp(max=absent - 1))
        self.nodes = [torch.where(self.exists, node, absent) for node in nodes]
        """Nodes [P, M] of levels 0 .. K on their paths, ascending; a number that is no node pads."""
        self.codes = [level.codes[node].long() for level, node in zip(trie.levels, nodes[1:], strict=True)]
        """Codes [P, M] of levels 0 .. K - 1 on their paths."""
        self.marked = [self._marks(level) for level in range(trie.depth)]
        """[P, M] bool for each level: whether the edge to the next level is marked."""
        self.completions = self._completions()
        """[P] int64: distinct SIDs that each request may get."""

    @abstractmethod
    def _marks(self, level: int) -> Tensor:
        """Which edges [P, M] from `level` to the next are marked."""

    @abstractmethod
    def _leave(self, legal: Tensor, marks: Tensor) -> Tensor:
        """What the marks leave of the legal codes."""

    @abstractmethod
    def _completions(self) -> Tensor:
        """Number of distinct SIDs [P] that each request may get."""

    @abstractmethod
    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Like `Trie.expand`, with the items only that the request may get."""

    def legal(self, level: int, nodes: Tensor, legal: Tensor) -> Tensor:
        """The request's part of `legal` [n, codes] behind nodes [n] of `level`, n / P rows per request in turn.

        A node that the request cannot reach keeps its unfiltered row: beam search asks for such rows to fill its
        places and drops them afterwards, and an empty row would have no distribution.
        """
        requests, listed = self.exists.shape
        if nodes.numel() % requests:
            raise DataError(
                f"{nodes.numel()} states for a layout that is filtered for {requests} requests: every request needs "
                "equally many. Filter the layout for the prompts of the batch."
            )
        size = legal.shape[1]
        on_path = (nodes.view(requests, -1, 1) == self.nodes[level][:, None]) & self.marked[level][:, None]
        columns = torch.where(on_path, self.codes[level][:, None], size).view(len(legal), listed)
        marks = legal.new_zeros(len(legal), size + 1).scatter_(1, columns, True)[:, :size]
        left = self._leave(legal, marks)
        return torch.where(left.any(1, keepdim=True), left, legal)

    def _marked_leaves(self) -> Tensor:
        """Number of distinct leaves [P] behind marked edges of the last level."""
        leaves = self.nodes[-1]
        again = torch.zeros_like(self.exists)
        again[:, 1:] = leaves[:, 1:] == leaves[:, :-1]
        return (self.marked[-1] & ~again).sum(1)


class Allow(Filter):
    """Requests get listed items only: an edge is legal if the path of a listed item takes it."""

    def _marks(self, level: int) -> Tensor:
        return self.exists

    def _leave(self, legal: Tensor, marks: Tensor) -> Tensor:
        return legal & marks

    def _completions(self) -> Tensor:
        return self._marked_leaves()

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Listed items at the leaves, in the order of the leaves and inside a leaf in that of the trie."""
        found = leaves[:, None] == self.nodes[-1][:, :, None]  # [P, M, W]
        owner = torch.where(found.any(2), found.byte().argmax(2), leaves.shape[1])
        order = owner.argsort(dim=1, stable=True)
        items = self.items.gather(1, order)
        owner = owner.gather(1, order)
        scores = torch.cat([scores, scores.new_full((len(scores), 1), float("-inf"))], dim=1).gather(1, owner)
        return _cut(items.masked_fill(owner == leaves.shape[1], -1), scores, width)


class Deny(Filter):
    """Requests do not get listed items: an edge is illegal if all items below it are listed."""

    def _marks(self, level: int) -> Tensor:
        nodes = self.nodes[level + 1]
        listed = torch.searchsorted(nodes, nodes, right=True) - torch.searchsorted(nodes, nodes)
        return self.exists & (listed == self.trie.items_below(level + 1, torch.where(self.exists, nodes, 0)))

    def _leave(self, legal: Tensor, marks: Tensor) -> Tensor:
        return legal & ~marks

    def _completions(self) -> Tensor:
        return self.trie.leaves - self._marked_leaves()

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Items at the leaves without the listed ones."""
        items, scores = self.trie.expand(leaves, scores, width + self.items.shape[1])
        denied = _contains(self.items, items)  # pads too, which stand at the end anyway
        order = denied.byte().argsort(dim=1, stable=True)
        return _cut(items.masked_fill(denied, -1).gather(1, order), scores.gather(1, order), width)


def make_filter(trie: Trie, places: Tensor, allow: Tensor | None, deny: Tensor | None) -> Filter:
    """The filter of a batch of requests.

    Args:
        trie: the catalogue's trie.
        places: [I] place of each catalogue row in `trie.leaf_items`, -1 for none.
        allow: [P, M] catalogue rows that a request may get, -1 pads; None is all.
        deny: [P, M] catalogue rows that a request must not get, -1 pads; None is none.

    Raises:
        DataError: if a row is not in the catalogue or a request has no item left.
    """
    given = [rows for rows in (allow, deny) if rows is not None]
    if not given or any(rows.dim() != 2 or len(rows) != len(given[0]) for rows in given):
        raise DataError(
            f"a filter with `allow` and `deny` of shapes {[list(rows.shape) for rows in given]}: give at least one of "
            "them, [requests, rows], and both for the same requests."
        )
    for rows in given:
        _check_rows(rows, len(places))
    made: Filter
    if allow is None:
        assert deny is not None
        made = Deny(trie, _look_up(places, deny))
    else:
        left = allow if deny is None else allow.masked_fill(_contains(deny, allow), -1)
        made = Allow(trie, _look_up(places, left))
    if not bool(made.completions.all()):
        request = int(made.completions.argmin())
        raise DataError(
            f"request {request} of the batch has no item left: its `allow` and `deny` rule out every item of the trie. "
            "Leave the request out or relax its filter."
        )
    return made


def _check_rows(rows: Tensor, items: int) -> None:
    wrong = (rows < -1) | (rows >= items)
    if bool(wrong.any()):
        request, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"the filter of request {request} names catalogue row {int(rows[request, column])}, but rows are "
            f"0 .. {items - 1} (-1 pads)."
        )


def _look_up(places: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows < 0, -1, places[rows.clamp(min=0)].long())


def _distinct(places: Tensor, absent: int) -> Tensor:
    """Places [P, M] of each row in ascending order, `absent` at the end in place of -1 and of repetitions."""
    places = torch.where(places < 0, absent, places).sort(1).values
    again = torch.zeros_like(places, dtype=torch.bool)
    again[:, 1:] = places[:, 1:] == places[:, :-1]
    return places.masked_fill(again, absent).sort(1).values


def _contains(rows: Tensor, values: Tensor) -> Tensor:
    """Which values [P, N] are in the same row of `rows` [P, M], in any order; -1 always is."""
    known = torch.cat([rows, rows.new_full((len(rows), 1), -1)], dim=1).sort(1).values
    index = torch.searchsorted(known, values.contiguous()).clamp(max=known.shape[1] - 1)
    return known.gather(1, index) == values


def _cut(items: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Ranked items [P, N] and scores, -1 behind all others -> [P, width], padded with -1 and -inf."""
    short = max(0, width - items.shape[1])
    items = functional.pad(items[:, :width], (0, short), value=-1)
    scores = functional.pad(scores[:, :width], (0, short), value=float("-inf"))
    return items, scores.masked_fill(items < 0, float("-inf"))
