"""The prefix tree of the catalogue's SIDs: the one object that says which token may come next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrl.errors import DataError
from genrl.progress import progress_bar

CHUNK = 1 << 20
"""Items that a build looks at together; bounds its temporary memory."""
SLOW = 5_000_000
"""Items from which on a build takes seconds and shows a progress bar."""
MASK_BYTES = 2
"""Bytes per item and level that masks of legal codes may take."""
KEY_BITS = 62
"""Bits of SID that one sort key holds."""


@dataclass(frozen=True)
class TrieLevel:
    """Edges from the nodes of one level to the next, in compressed rows; edge e leads to node e of the next level."""

    size: int
    """Codes of the level's codebook."""
    widest: int
    """Largest number of children of a node."""
    offsets: Tensor
    """[nodes + 1] int32 (int64 from 2^31 edges on): node n owns the edges offsets[n] .. offsets[n + 1]."""
    codes: Tensor
    """[edges] uint8, int16, int32 or int64 as the codebook needs: code on each edge, ascending inside a node."""
    masks: Tensor | None = None
    """[nodes, size] bool: legal codes of each node, in levels where this takes little memory."""

    @property
    def tables(self) -> list[Tensor]:
        return [self.offsets, self.codes] + ([] if self.masks is None else [self.masks])

    def to(self, device: torch.device | str) -> TrieLevel:
        return TrieLevel(self.size, self.widest, *(table.to(device) for table in self.tables))

    def legal(self, nodes: Tensor) -> Tensor:
        """Codes that may follow nodes [n]: mask [n, size]."""
        if self.masks is not None:
            return self.masks.index_select(0, nodes)
        first, last = self.offsets[nodes], self.offsets[nodes + 1] - 1
        edges = first[:, None] + torch.arange(self.widest, dtype=first.dtype, device=nodes.device)
        edges = torch.minimum(edges, last[:, None]).clamp(min=0)  # a narrow node repeats its last edge
        codes = self.codes.index_select(0, edges.flatten()).view(edges.shape).long()
        return torch.zeros(len(nodes), self.size, dtype=torch.bool, device=nodes.device).scatter_(1, codes, True)


class Trie:
    """Which codes may follow which prefix, on the device, for all items of a catalogue.

    Nodes of level l are numbered in the order of their prefixes; the root is node 0 of level 0 and leaves are the
    nodes of level K. So the nodes below a node are neighbours on every level, and the items below it are neighbours
    in `leaf_items`: the *place* of an item is its index there. An unknown prefix cannot be asked for: `child` answers
    -1 for a code that does not exist and `legal` never has an empty row, because every node lies on the path of an
    item.

    Tables hold the smallest integers that fit, less than 4 bytes per item and level for ten million items with
    four levels of 256 codes; what methods return is int64 or bool. Leaf n decodes to the first of the catalogue rows
    `leaf_items` [items] between `leaf_offsets` [leaves + 1] n and n + 1.
    """

    def __init__(self, levels: tuple[TrieLevel, ...], leaf_offsets: Tensor, leaf_items: Tensor) -> None:
        self.levels = levels
        self.leaf_offsets = leaf_offsets
        self.leaf_items = leaf_items

    @classmethod
    def build(cls, codes: Tensor | Iterable[Tensor], sizes: tuple[int, ...], popularity: Tensor | None = None) -> Trie:
        """Build the trie of SIDs [I, K], or chunks [n, K] of them, with codebooks of `sizes`.

        Of items that share a SID the one of most `popularity` [I] comes first, of equal ones that of the lower row.
        SIDs are packed into sort keys of 8 bytes as they come, one key for every 62 bits of SID; beyond keys, order
        and the trie itself the build needs little memory. A SID of more than 62 bits costs one more sort per key.

        Raises:
            DataError: for an empty catalogue or a code outside its codebook.
        """
        fields = _fields(sizes)
        keys = _pack(codes.split(CHUNK) if isinstance(codes, Tensor) else codes, fields)
        items = len(keys[0])
        bar = progress_bar("building the trie", items, "items") if items >= SLOW else nullcontext(lambda count: None)
        with bar as advance:
            order = _order(keys, popularity)
            levels, leaf_offsets = _tables(keys, order, fields, advance)
        leaf_items = order.to(leaf_offsets.dtype)
        del keys, order
        return cls(_with_masks(levels, items), leaf_offsets, leaf_items)

    @property
    def depth(self) -> int:
        """Tokens per SID (K)."""
        return len(self.levels)

    @property
    def leaves(self) -> int:
        """Number of distinct SIDs."""
        return self.leaf_offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.leaf_items.device

    def nbytes(self) -> int:
        """Bytes of all tables."""
        tables = [self.leaf_offsets, self.leaf_items, *(table for level in self.levels for table in level.tables)]
        return sum(table.numel() * table.element_size() for table in tables)

    @property
    def bytes_per_item_level(self) -> float:
        """Bytes of all tables, divided by items and levels."""
        return self.nbytes() / (self.leaf_items.numel() * self.depth)

    def to(self, device: torch.device | str) -> Trie:
        if torch.device(device) == self.device:
            return self
        levels = tuple(level.to(device) for level in self.levels)
        return Trie(levels, self.leaf_offsets.to(device), self.leaf_items.to(device))

    def legal(self, level: int, nodes: Tensor) -> Tensor:
        """Codes that may follow: nodes [n] of `level` -> mask [n, codes of the level]; no row is empty."""
        return self.levels[level].legal(nodes)

    def child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """Node of level + 1 behind each (node, code), any shape; -1 where no item has that prefix."""
        table = self.levels[level]
        known = nodes.clamp(min=0)
        edges, last = table.offsets[known].long(), table.offsets[known + 1].long() - 1
        for bit in reversed(range((table.widest - 1).bit_length())):  # the last edge whose code is not larger
            probe = torch.minimum(edges + (1 << bit), last)
            edges = torch.where(table.codes.take(probe) <= codes, probe, edges)
        return torch.where((table.codes.take(edges) == codes) & (nodes >= 0), edges, -1)

    def items_below(self, level: int, nodes: Tensor) -> Tensor:
        """Number of items whose path goes through each node of `level`, any shape."""
        first, behind = self.places_below(level, nodes)
        return behind - first

    def places_below(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Place of the first item below each node of `level`, any shape, and the one behind its last."""
        first, behind = self._leaves_below(level, nodes)
        return self.leaf_offsets[first].long(), self.leaf_offsets[behind].long()

    def leaves_below(self, level: int, nodes: Tensor) -> Tensor:
        """Number of SIDs that begin with the prefix of each node of `level`, any shape."""
        first, behind = self._leaves_below(level, nodes)
        return (behind - first).long()

    def _leaves_below(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First leaf below each node of `level` and the one behind the last."""
        first, behind = nodes, nodes + 1
        for table in self.levels[level:]:
            first, behind = table.offsets[first], table.offsets[behind]
        return first, behind

    def items(self, leaves: Tensor) -> Tensor:
        """The catalogue row that each leaf decodes to (the most popular of those sharing it); -1 stays -1."""
        return torch.where(leaves < 0, -1, self.leaf_items[self.leaf_offsets[leaves.clamp(min=0)]].long())

    def expand(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Turn ranked leaves into ranked items: a leaf with n items becomes n places with its score.

        Leaves and scores [P, W], best first, -1 pads, become items and scores [P, width], padded with -1 and -inf.
        """
        known = leaves.clamp(min=0)
        first = self.leaf_offsets[known].long()
        counts = torch.where(leaves < 0, 0, self.leaf_offsets[known + 1] - first)
        ends = counts.cumsum(1)
        places = torch.arange(width, device=leaves.device).expand(leaves.shape[0], -1).contiguous()
        owner = torch.searchsorted(ends, places, right=True)
        exists = owner < leaves.shape[1]
        owner = owner.clamp(max=leaves.shape[1] - 1)
        rows = places + (first - ends + counts).gather(1, owner)
        items = self.leaf_items[torch.where(exists, rows, 0)].long()
        return torch.where(exists, items, -1), scores.gather(1, owner).masked_fill(~exists, float("-inf"))

    def path(self, codes: Tensor) -> Tensor:
        """Nodes before each code of SIDs [n, K] -> [n, K]; the legal set of each token.

        Raises:
            DataError: if a SID is not in the catalogue.
        """
        nodes = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
        path = []
        for level in range(self.depth):
            path.append(nodes)
            nodes = self.child(level, nodes, codes[:, level])
            if bool((nodes < 0).any()):
                row = int((nodes < 0).nonzero()[0, 0])
                raise DataError(f"SID {codes[row].tolist()} is not in the catalogue's trie (level {level + 1}).")
        return torch.stack(path, dim=1)

    def ancestors(self, places: Tensor) -> list[Tensor]:
        """Nodes of levels 0 .. K on the way to places in `leaf_items`: K + 1 tensors of the same shape."""
        nodes = places.to(self.leaf_offsets.dtype)
        path = []
        for offsets in (self.leaf_offsets, *(level.offsets for level in reversed(self.levels))):
            nodes = (torch.searchsorted(offsets, nodes, right=True) - 1).to(offsets.dtype)
            path.append(nodes.long())
        return path[::-1]


@dataclass(frozen=True)
class _Field:
    """Where the sort keys hold the code of a level."""

    size: int
    key: int
    shift: int
    mask: int


def _fields(sizes: tuple[int, ...]) -> list[_Field]:
    """Fill keys from their highest bit on, level by level; a code that no longer fits starts the next key."""
    fields, key, used = [], 0, 0
    for size in sizes:
        bits = (size - 1).bit_length()
        if used + bits > KEY_BITS:
            key, used = key + 1, 0
        used += bits
        fields.append(_Field(size, key, KEY_BITS - used, (1 << bits) - 1))
    return fields


def _pack(chunks: Iterable[Tensor], fields: list[_Field]) -> list[Tensor]:
    """Chunks [n, K] of codes -> sort keys [I] int64; comparing all keys in turn compares the SIDs."""
    parts: list[list[Tensor]] = [[] for _ in range(1 + max((field.key for field in fields), default=0))]
    for chunk in chunks:
        codes = chunk.cpu().long()
        _check(codes, fields)
        packed = [codes.new_zeros(len(codes)) for _ in parts]
        for field, column in zip(fields, codes.unbind(1), strict=True):
            packed[field.key] |= column << field.shift
        for part, key in zip(parts, packed, strict=True):
            part.append(key)
    if not fields or not any(key.numel() for key in parts[0]):
        raise DataError(
            "the catalogue has no items with a SID: a trie over nothing would allow nothing. Check the item table."
        )
    return [torch.cat(part) for part in parts]


def _check(codes: Tensor, fields: list[_Field]) -> None:
    if codes.shape[1] != len(fields):
        raise DataError(f"SIDs of {codes.shape[1]} codes for {len(fields)} codebooks: give one codebook per level.")
    if not len(codes):
        return
    lows, highs = codes.amin(0).tolist(), codes.amax(0).tolist()
    for level, (field, low, high) in enumerate(zip(fields, lows, highs, strict=True), start=1):
        if low < 0 or high >= field.size:
            code = low if low < 0 else high
            raise DataError(f"SID level {level} has code {code}, outside its codebook of {field.size}.")


def _order(keys: list[Tensor], popularity: Tensor | None) -> Tensor:
    """Catalogue rows by SID, inside a SID by falling popularity, then by row: stable sorts from the last key on."""
    order = None
    if popularity is not None:
        if len(popularity) != len(keys[0]):
            raise DataError(f"popularity of {len(popularity)} items for {len(keys[0])} SIDs: give one count per item.")
        order = popularity.cpu().argsort(descending=True, stable=True)
    for key in reversed(keys):
        order = key.argsort(stable=True) if order is None else order[key[order].argsort(stable=True)]
    assert order is not None
    return order


def _tables(
    keys: list[Tensor], order: Tensor, fields: list[_Field], advance: Callable[[int], None]
) -> tuple[list[TrieLevel], Tensor]:
    """Levels and leaf offsets, by comparing each SID with the one before it in `order`, some at a time."""
    items, depth = order.numel(), len(fields)
    index = torch.int32 if items < 2**31 else torch.int64
    codes: list[list[Tensor]] = [[] for _ in fields]
    offsets: list[list[Tensor]] = [[] for _ in range(depth + 1)]  # the last are the leaves'
    edges = [0] * depth
    last = [key[order[:1]] for key in keys]
    for start in range(0, items, CHUNK):
        current = [key[order[start : start + CHUNK]] for key in keys]
        changed = [key ^ torch.cat([before, key[:-1]]) for key, before in zip(current, last, strict=True)]
        last = [key[-1:] for key in current]
        opens = torch.zeros(len(current[0]), dtype=torch.bool)  # a node of the level begins with this item
        opens[0] = start == 0
        for level, field in enumerate(fields):
            parents = opens
            opens = parents | (changed[field.key] >> field.shift != 0)
            codes[level].append((current[field.key][opens] >> field.shift & field.mask).to(_code_type(field.size)))
            counted = opens.cumsum(0)
            offsets[level].append((counted[parents] + (edges[level] - 1)).to(index))
            edges[level] += int(counted[-1])
        offsets[depth].append((opens.nonzero()[:, 0] + start).to(index))
        advance(len(opens))
    levels = []
    for level, field in enumerate(fields):
        bounds = torch.cat([*offsets[level], torch.tensor([edges[level]], dtype=index)])
        levels.append(TrieLevel(field.size, int(bounds.diff().max()), bounds, torch.cat(codes[level])))
    return levels, torch.cat([*offsets[depth], torch.tensor([items], dtype=index)])


def _with_masks(levels: list[TrieLevel], items: int) -> tuple[TrieLevel, ...]:
    """Give each level its masks as long as those of all levels take no more than `MASK_BYTES` per item and level."""
    room = MASK_BYTES * items * len(levels)
    done = []
    for level in levels:
        nodes = level.offsets.numel() - 1
        if nodes * level.size <= room:
            room -= nodes * level.size
            rows = torch.arange(nodes, device=level.offsets.device).split(max(1, CHUNK // level.size))
            level = replace(level, masks=torch.cat([level.legal(some) for some in rows]))
        done.append(level)
    return tuple(done)


def _code_type(size: int) -> torch.dtype:
    if size <= 2**8:
        return torch.uint8
    return torch.int16 if size <= 2**15 else torch.int32 if size <= 2**31 else torch.int64
