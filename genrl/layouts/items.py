"""The items that completions name: SIDs behind a trie, and which of them a request may get."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from genrl.batches import Requests, State
from genrl.errors import ConfigError, DataError
from genrl.layouts.base import Legal, TokenRanges
from genrl.sid.trie import Trie, TrieLevel


@dataclass(frozen=True, slots=True)
class ItemState(State):
    """A state that stands in the trie."""

    node: Tensor
    """[n] int64 node of the codes so far; -1 behind a code that does not exist."""


class Items:
    """The part of a grammar that names an item by its SID, K codes one behind the other.

    Which items a request may get (`Requests.pool`), must not get (`Requests.deny`) and which a completion has named
    already are one mechanism: an edge is legal if an item below it is left. What that costs depends on the lists, not
    on the catalogue. Scores of the items that are left can stay those of the whole catalogue: `Legal.within`.

    `first_ids` [K] are the tokens of code 0 of each level, `keep` [I] the items there are at all (None: all).
    """

    def __init__(self, trie: Trie, first_ids: tuple[int, ...], codes: Tensor, keep: Tensor | None = None) -> None:
        self.trie = trie
        self.codes = codes
        self.keep = keep
        self.tokens = TokenRanges(first_ids, tuple(level.size for level in trie.levels))
        self.levels = trie.depth
        self.first = torch.tensor(first_ids, device=codes.device)
        self.stock = trie if keep is None else _stock(trie, keep)
        self._last: tuple[Requests, Lists] | None = None

    def to(self, device: str | torch.device) -> Items:
        if torch.device(device) == self.codes.device:
            return self
        keep = None if self.keep is None else self.keep.to(device)
        return Items(self.trie.to(device), self.tokens.first_ids, self.codes.to(device), keep)

    def only(self, keep: Tensor) -> Items:
        """Some of the items; takes time in proportion to the catalogue."""
        if keep.shape != self.codes.shape[:1]:
            raise DataError(
                f"a filter of shape {list(keep.shape)} for {len(self.codes)} items: give one bool per item."
            )
        keep = keep.to(self.codes.device)
        return Items(self.trie, self.tokens.first_ids, self.codes, keep if self.keep is None else keep & self.keep)

    @property
    def distinct(self) -> int:
        """Number of distinct SIDs."""
        return int((self.stock.leaf_offsets.diff() > 0).sum())

    @cached_property
    def most(self) -> int:
        """Items of the SID that has most."""
        return int(self.stock.leaf_offsets.diff().max())

    @cached_property
    def places(self) -> Tensor:
        """[I] int32: place of each catalogue row among the items there are, -1 for those that are not among them."""
        leaf_items = self.stock.leaf_items
        places = leaf_items.new_full((len(self.codes),), -1)
        places[leaf_items.long()] = torch.arange(len(leaf_items), dtype=places.dtype, device=places.device)
        return places

    def legal(
        self, level: int, node: Tensor, owner: Tensor, requests: Requests | None = None, taken: Tensor | None = None
    ) -> Legal:
        """The codes that may follow nodes [n] of a level, for requests `owner` [n] of P.

        A node of -1 (a beam that does not exist) gets the root's row. Catalogue rows `taken` [n, t], -1 pads, must not
        be named again.
        """
        node = node.clamp(min=0)
        edges = self.trie.legal(level, node)
        first, child = self.tokens.first_ids[level], self.trie.levels[level].offsets[node].long()
        within, whole, rows = edges, None, owner
        if taken is not None:
            whole, rows = edges, torch.arange(len(node), device=node.device)
            within = _left(Lists.of(self._all, None, taken, known=True), level, node, rows, edges)
        if self.keep is None and _unfiltered(requests):
            return Legal(within, first, child=child, level=level, whole=whole)
        mask = edges if self.keep is None else self.stock.legal(level, node)
        lists = self._lists(requests, owner, taken)
        mask = mask if lists is None else _left(lists, level, node, rows, mask)
        return Legal(mask, first, within=within, child=child, level=level, whole=whole)

    def named(self, leaves: Tensor, owner: Tensor, requests: Requests | None = None) -> Tensor:
        """Catalogue rows [n, t] that leaves [n, t] name one after the other, for requests `owner` [n]; -1 stays -1.

        Of items that share a SID each mention of it names the next one that the request may get, most popular first.
        """
        shared = leaves.clamp(min=0)
        start, stop = (self.stock.leaf_offsets[shared + end].long() for end in (0, 1))
        place = torch.arange(self.most, device=leaves.device)
        places = start[..., None] + place  # [n, t, items of a SID]
        rows = self.stock.leaf_items[places.clamp(max=len(self.stock.leaf_items) - 1)].long()
        allowed = (places < stop[..., None]) & (leaves >= 0)[..., None]
        if self.most > 1:
            allowed &= self._allowed(rows.flatten(1), owner, requests).view(rows.shape)
            again = leaves[:, :, None] == leaves[:, None, :]
            earlier = again.tril(-1).sum(2, keepdim=True)
            allowed &= allowed.cumsum(2) == earlier + 1
        return torch.where(allowed.any(2), rows.gather(2, allowed.byte().argmax(2, keepdim=True))[..., 0], -1)

    def left(self, requests: Requests | None) -> Tensor:
        """Number of items [P] that each request may get, or [1] where there is no filter of requests."""
        lists, every = self._lists(requests), torch.full((1,), self.stock.leaf_items.numel(), device=self.codes.device)
        return every if lists is None else lists.left(every)

    def narrow(self, level: int, node: Tensor, owner: Tensor, requests: Requests | None = None) -> Legal:
        """As `legal`, with a column for each edge: as many as the widest row has, and two at least."""
        node, table = node.clamp(min=0), self.trie.levels[level]
        child = table.offsets.index_select(0, node)
        counts = table.offsets.index_select(0, node + 1) - child
        place = torch.arange(max(2, int(counts.max())) if len(node) else 2, device=node.device)
        exists = place < counts[:, None]
        edges = child[:, None] + torch.minimum(place, counts[:, None] - 1)
        codes = table.codes.index_select(0, edges.flatten()).view(edges.shape).long()
        first = self.tokens.first_ids[level]
        mask, within = exists, None
        if self.keep is not None or self._lists(requests, owner) is not None:
            mask, within = self.legal(level, node, owner, requests).mask.gather(1, codes) & exists, exists
        return Legal(mask, first, codes + first, within, child.long(), level)

    def open_leaves(self, requests: Requests | None) -> Tensor | None:
        """[P, leaves] or [1, leaves] bool: SIDs of which an item is left for each request; None: all."""
        lists = self._lists(requests)
        stocked = None if self.keep is None else (self.stock.leaf_offsets.diff() > 0)[None]
        if lists is None:
            return stocked
        return lists.leaves() if stocked is None else lists.leaves() & stocked

    def child(self, level: int, node: Tensor, tokens: Tensor) -> Tensor:
        """Nodes behind tokens of a level; -1 where there is none."""
        return self.trie.child(level, node, tokens - self.tokens.first_ids[level])

    def rank(self, leaves: Tensor, scores: Tensor, width: int, requests: Requests | None) -> tuple[Tensor, Tensor]:
        """Ranked leaves [P, W] to ranked items [P, width]; those of one SID in the order of the trie."""
        lists = self._lists(requests)
        if lists is None:
            return self.stock.expand(leaves, scores, width)
        return lists.rank(leaves, scores, width)

    @cached_property
    def _all(self) -> Items:
        """The items without the filter that all requests share."""
        return self if self.keep is None else Items(self.trie, self.tokens.first_ids, self.codes)

    def _allowed(self, rows: Tensor, owner: Tensor, requests: Requests | None) -> Tensor:
        """Which catalogue rows [n, m] the lists of requests `owner` [n] let pass."""
        allowed = torch.ones_like(rows, dtype=torch.bool)
        if requests is not None and requests.pool is not None:
            allowed &= contains(requests.pool[owner], rows)
        if requests is not None and requests.deny is not None:
            allowed &= ~contains(requests.deny[owner], rows)
        return allowed

    def render(self, items: Tensor) -> Tensor:
        """SID tokens [..., K] of catalogue rows [...]."""
        return self.codes[items] + self.first

    def _lists(
        self, requests: Requests | None, owner: Tensor | None = None, taken: Tensor | None = None
    ) -> Lists | None:
        """What the requests say; made once for each batch of them, and for each step where completions have a say."""
        pool, deny = (None, None) if requests is None else (requests.pool, requests.deny)
        if taken is not None and owner is not None:
            pool = None if pool is None else pool[owner]
            deny = taken if deny is None else torch.cat([deny[owner], taken], dim=1)
        if pool is None and deny is None:
            return None
        if taken is not None:
            self._lists(requests)  # checks what a user has listed, once
            return Lists.of(self, pool, deny, known=True)
        assert requests is not None
        if self._last is None or self._last[0] is not requests:
            lists = Lists.of(self, pool, deny)
            lists.check(self.left(None))
            self._last = (requests, lists)
        return self._last[1]


def check_enough(items: int, length: int, filtered: bool) -> None:
    """Refuse slates that are longer than the items there are, all of the catalogue or what a filter leaves of it.

    Raises:
        ConfigError: if there are fewer than `length` items.
        DataError: if it is the filter that leaves fewer.
    """
    if items >= length:
        return
    said = f"a slate of layout.length={length} different items is longer than the {items} items that"
    if filtered:
        raise DataError(
            f"{said} the filter leaves. Allow {length} items or more (recommend: in the file of --only, or without "
            f"--cold): a policy writes slates of the length that it learned."
        )
    raise ConfigError(f"{said} there are to choose from. Set layout.length={items} or less, or bring more items.")


def check_left(left: Tensor, length: int) -> None:
    """Refuse slates of more items than their requests have left [P].

    Raises:
        DataError: naming the first such request.
    """
    short = left < length
    if bool(short.any()):
        request = int(short.byte().argmax())
        raise DataError(
            f"request {request} of the batch has {int(left[request])} items left, and {length} are to be named: a "
            f"slate holds layout.length={length} different ones. Make its pool larger (data.pool.size; recommend: the "
            f"file of --only), relax its filter (`pool`, `deny`), or train with a lower layout.length."
        )


def check_slates(items: Tensor, length: int) -> None:
    """Refuse slates of catalogue rows [n, L] that do not hold `length` different items.

    Raises:
        DataError: naming the first that has another length, a gap or an item twice.
    """
    if items.shape[1] != length:
        raise DataError(
            f"slates have layout.length={length} items, these rows {items.shape[1]}. Fill them up first, see "
            f"genrl.recommenders.gold."
        )
    ordered = items.sort(1).values
    wrong = (ordered < 0).any(1) | (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(wrong.any()):
        row = int(wrong.byte().argmax())
        raise DataError(f"slate {row} is {items[row].tolist()}: it must hold {length} different items.")


def _unfiltered(requests: Requests | None) -> bool:
    return requests is None or (requests.pool is None and requests.deny is None)


def _left(lists: Lists, level: int, node: Tensor, rows: Tensor, legal: Tensor) -> Tensor:
    """What lists leave of `legal` [n, codes]; all of it where they leave nothing, as for beams that do not exist."""
    left = lists.legal(level, node, rows, legal)
    return torch.where(left.any(1, keepdim=True), left, legal)


def _stock(trie: Trie, keep: Tensor) -> Trie:
    """The trie without the edges that lead to no item of `keep` [I]; leaves and their numbers stay, some are empty.

    Its nodes are those of the whole trie, but only for `legal`, `items_below` and `expand`.
    """
    kept = keep.to(trie.device)[trie.leaf_items]
    if not bool(kept.any()):
        raise DataError(
            "the filter keeps no item that has a SID: a trie over nothing would allow nothing. Keep at least one."
        )
    leaf_offsets = _counted(kept, trie.leaf_offsets)
    alive = leaf_offsets.diff() > 0
    levels: list[TrieLevel] = []
    for level in reversed(trie.levels):
        offsets = _counted(alive, level.offsets)
        levels.append(
            replace(level, offsets=offsets, codes=level.codes[alive], widest=int(offsets.diff().max()), masks=None)
        )
        alive = offsets.diff() > 0
    return Stock(trie, tuple(levels[::-1]), leaf_offsets, trie.leaf_items[kept])


def _counted(kept: Tensor, offsets: Tensor) -> Tensor:
    """Offsets into rows of which only `kept` stay."""
    return torch.cat([kept.new_zeros(1), kept]).cumsum(0, dtype=offsets.dtype)[offsets]


class Stock(Trie):
    """A trie of which some items are taken out, with the nodes of the whole one."""

    def __init__(self, whole: Trie, levels: tuple[TrieLevel, ...], leaf_offsets: Tensor, leaf_items: Tensor) -> None:
        super().__init__(whole.levels, leaf_offsets, leaf_items)
        self.edges = levels

    def legal(self, level: int, nodes: Tensor) -> Tensor:
        """Codes that lead to an item that stays."""
        return self.edges[level].legal(nodes)


class Listed:
    """Lists of M items for each of R rows: all that a row may get (`allow`), or what it must not get.

    `places` [R, M] are numbers of the listed items below `absent`, in any order; -1 is none.
    """

    def __init__(self, places: Tensor, allow: bool, absent: int) -> None:
        self.allow, self.absent = allow, absent
        self.places = distinct(places, absent)
        self.exists = self.places < absent
        """[R, M] bool: listed items that there are, each once."""

    def left(self, every: Tensor) -> Tensor:
        """Items [R] that are left of `every` [1]."""
        listed = self.exists.sum(1)
        return listed if self.allow else every - listed

    def check(self, every: Tensor) -> None:
        """Refuse, by its number, a request without any item left of `every` [1]."""
        none = self.left(every) == 0
        if bool(none.any()):
            raise DataError(
                f"request {int(none.byte().argmax())} of the batch has no item left: its `pool` and `deny` rule out "
                "every item. Leave the request out or relax its filter."
            )


class Lists(Listed):
    """Lists of places in `stock.leaf_items`, with the paths to them."""

    def __init__(self, stock: Trie, places: Tensor, allow: bool) -> None:
        absent = stock.leaf_items.numel()
        super().__init__(places, allow, absent)
        self.stock, places = stock, self.places
        self.items = torch.where(self.exists, stock.leaf_items[places.clamp(max=absent - 1)].long(), -1)
        """[R, M] their catalogue rows, in the order of the trie; -1 pads."""
        nodes = stock.ancestors(places.clamp(max=absent - 1))
        none = stock.leaf_offsets.numel()
        self.nodes = [torch.where(self.exists, node, none) for node in nodes]
        """Nodes [R, M] of levels 0 .. K on their paths, ascending; a number that is no node pads."""
        self.codes = [level.codes[node].long() for level, node in zip(stock.levels, nodes[1:], strict=True)]
        """Codes [R, M] of levels 0 .. K - 1 on their paths."""

    @classmethod
    def of(cls, items: Items, pool: Tensor | None, deny: Tensor | None, *, known: bool = False) -> Lists:
        """Lists of catalogue rows [R, C] that rows may get and [R, D] that they must not get, -1 pads.

        Both are checked but for those that are `known` to be rows of the catalogue.
        """
        rows, allow = listed_rows(pool, deny, None if known else len(items.codes))
        return cls(items.stock, look_up(items.places, rows), allow)

    def legal(self, level: int, nodes: Tensor, rows: Tensor, legal: Tensor) -> Tensor:
        """What the lists of `rows` [n] leave of `legal` [n, codes] behind nodes [n] of a level; it may be nothing."""
        size = legal.shape[1]
        marked = self.exists if self.allow else self._exhausted(level)
        on_path = (nodes[:, None] == self.nodes[level][rows]) & marked[rows]
        columns = torch.where(on_path, self.codes[level][rows], size)
        marks = legal.new_zeros(len(legal), size + 1).scatter_(1, columns, True)[:, :size]
        return legal & marks if self.allow else legal & ~marks

    def leaves(self) -> Tensor:
        """[R, leaves] bool: leaves that the lists leave something of."""
        marked = self.exists if self.allow else self._exhausted(self.stock.depth - 1)
        marks = torch.zeros(len(marked), self.stock.leaves + 1, dtype=torch.bool, device=marked.device)
        marks = marks.scatter_(1, torch.where(marked, self.nodes[-1], self.stock.leaves), True)[:, :-1]
        return marks if self.allow else ~marks

    def _exhausted(self, level: int) -> Tensor:
        """Edges [R, M] on the paths of listed items below which all items are listed."""
        nodes = self.nodes[level + 1]
        listed = torch.searchsorted(nodes, nodes, right=True) - torch.searchsorted(nodes, nodes)
        return self.exists & (listed == self.stock.items_below(level + 1, torch.where(self.exists, nodes, 0)))

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Items at leaves [R, W] that rows may get, in the order of the leaves, inside a leaf in that of the trie."""
        if not self.allow:
            items, scores = self.stock.expand(leaves, scores, width + self.items.shape[1])
            denied = contains(self.items, items)  # pads too, which stand at the end anyway
            order = denied.byte().argsort(dim=1, stable=True)
            return cut(items.masked_fill(denied, -1).gather(1, order), scores.gather(1, order), width)
        found = leaves[:, None] == self.nodes[-1][:, :, None]  # [R, M, W]
        owner = torch.where(found.any(2), found.byte().argmax(2), leaves.shape[1])
        order = owner.argsort(dim=1, stable=True)
        items, owner = self.items.gather(1, order), owner.gather(1, order)
        scores = torch.cat([scores, scores.new_full((len(scores), 1), float("-inf"))], dim=1).gather(1, owner)
        return cut(items.masked_fill(owner == leaves.shape[1], -1), scores, width)


def listed_rows(pool: Tensor | None, deny: Tensor | None, items: int | None) -> tuple[Tensor, bool]:
    """Rows to be listed of what requests may get and must not get, -1 pads, and whether they are all that is allowed.

    Raises:
        DataError: for a row that is none of the catalogue's.
    """
    for rows in (pool, deny):
        if rows is not None and items is not None:
            _check_rows(rows, items)
    if pool is None:
        assert deny is not None
        return deny, False
    return (pool if deny is None else pool.masked_fill(contains(deny, pool), -1)), True


def _check_rows(rows: Tensor, items: int) -> None:
    wrong = (rows < -1) | (rows >= items)
    if bool(wrong.any()):
        request, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"the filter of request {request} names catalogue row {int(rows[request, column])}, but rows are "
            f"0 .. {items - 1} (-1 pads)."
        )


def look_up(places: Tensor, rows: Tensor) -> Tensor:
    """Places of catalogue rows, any shape; -1 of -1."""
    return torch.where(rows < 0, -1, places[rows.clamp(min=0)].long())


def distinct(places: Tensor, absent: int) -> Tensor:
    """Places [R, M] of each row in ascending order, `absent` at the end in place of -1 and of repetitions."""
    places = torch.where(places < 0, absent, places).sort(1).values
    again = torch.zeros_like(places, dtype=torch.bool)
    again[:, 1:] = places[:, 1:] == places[:, :-1]
    return places.masked_fill(again, absent).sort(1).values


def contains(rows: Tensor, values: Tensor) -> Tensor:
    """Which values [R, N] are in the same row of `rows` [R, M], in any order; -1 always is."""
    known = torch.cat([rows, rows.new_full((len(rows), 1), -1)], dim=1).sort(1).values
    return among(known, values)


def among(ascending: Tensor, values: Tensor) -> Tensor:
    """Which values [R, N] are in the same row of `ascending` [R, M]."""
    if not ascending.shape[1]:
        return torch.zeros_like(values, dtype=torch.bool)
    index = torch.searchsorted(ascending, values.contiguous()).clamp(max=ascending.shape[1] - 1)
    return ascending.gather(1, index) == values


def cut(items: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Ranked items [R, N] and scores, -1 behind all others -> [R, width], padded with -1 and -inf."""
    short = max(0, width - items.shape[1])
    items = functional.pad(items[:, :width], (0, short), value=-1)
    scores = functional.pad(scores[:, :width], (0, short), value=float("-inf"))
    return items, scores.masked_fill(items < 0, float("-inf"))
