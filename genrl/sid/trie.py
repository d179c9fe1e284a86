"""The prefix tree of the catalogue's SIDs: the one object that says which token may come next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.errors import DataError


@dataclass(frozen=True)
class TrieLevel:
    """Edges from the nodes of one level to the next, in compressed rows; edge e leads to node e of the next level."""

    size: int
    """Codes of the level's codebook."""
    widest: int
    """Largest number of children of a node."""
    offsets: Tensor
    """[nodes + 1] int64: node n owns the edges offsets[n] .. offsets[n + 1]."""
    codes: Tensor
    """[edges] int64: code on each edge, ascending inside a node."""
    keys: Tensor
    """[edges] int64: node * size + code, ascending; finds a child by binary search."""


class Trie:
    """Which codes may follow which prefix, on the device, for all items of a catalogue.

    Nodes of level l are numbered in the order of their prefixes; the root is node 0 of level 0 and leaves are the
    nodes of level K. An unknown prefix cannot be asked for: `child` answers -1 for a code that does not exist and
    `legal` never has an empty row, because every node lies on the path of an item.

    Args:
        levels: edges of each level.
        leaf_offsets: [leaves + 1] int64 into `leaf_items`.
        leaf_items: [items] int64 catalogue rows sharing a leaf, the first is the one a leaf decodes to.
    """

    def __init__(self, levels: tuple[TrieLevel, ...], leaf_offsets: Tensor, leaf_items: Tensor) -> None:
        self.levels = levels
        self.leaf_offsets = leaf_offsets
        self.leaf_items = leaf_items

    @classmethod
    def build(cls, codes: Tensor, sizes: tuple[int, ...], popularity: Tensor | None = None) -> Trie:
        """Build the trie of `codes` [I, K] with codebooks of `sizes`.

        Args:
            codes: SID of each catalogue row.
            sizes: codes per level.
            popularity: [I] training interactions; of items that share a SID the most popular one comes first.

        Raises:
            DataError: for an empty catalogue or a code outside its codebook.
        """
        items, depth = codes.shape
        if items == 0 or depth == 0:
            raise DataError(
                "the catalogue has no items with a SID: a trie over nothing would allow nothing. Check the item table."
            )
        for level, size in enumerate(sizes):
            low, high = int(codes[:, level].min()), int(codes[:, level].max())
            if low < 0 or high >= size:
                raise DataError(
                    f"SID level {level + 1} has code {low if low < 0 else high}, outside its codebook of {size}."
                )
        order = torch.arange(items)
        if popularity is not None:
            order = popularity.cpu().argsort(descending=True, stable=True)
        codes = codes.cpu()
        nodes = torch.zeros(items, dtype=torch.int64)  # node of each item's prefix, level by level
        levels = []
        for level, size in enumerate(sizes):
            item_keys = nodes * size + codes[:, level]
            keys, nodes_below = item_keys.unique(sorted=True, return_inverse=True)
            parents = keys // size
            degrees = torch.bincount(parents, minlength=int(nodes.max()) + 1)
            offsets = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
            levels.append(TrieLevel(size, int(degrees.max()), offsets, keys % size, keys))
            nodes = nodes_below
        by_leaf = order[nodes[order].argsort(stable=True)]
        per_leaf = torch.bincount(nodes)
        return cls(tuple(levels), torch.cat([per_leaf.new_zeros(1), per_leaf.cumsum(0)]), by_leaf)

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
        """Where the tables live."""
        return self.leaf_items.device

    def nbytes(self) -> int:
        """Bytes of all tables."""
        tables = [self.leaf_offsets, self.leaf_items]
        tables += [table for level in self.levels for table in (level.offsets, level.codes, level.keys)]
        return sum(table.numel() * table.element_size() for table in tables)

    def to(self, device: torch.device | str) -> Trie:
        """The trie on another device."""
        if torch.device(device) == self.device:
            return self
        levels = tuple(
            TrieLevel(x.size, x.widest, x.offsets.to(device), x.codes.to(device), x.keys.to(device))
            for x in self.levels
        )
        return Trie(levels, self.leaf_offsets.to(device), self.leaf_items.to(device))

    def legal(self, level: int, nodes: Tensor) -> Tensor:
        """Codes that may follow: nodes [n] of `level` -> mask [n, codes of the level]; no row is empty."""
        table = self.levels[level]
        first = table.offsets[nodes]
        edges = first[:, None] + torch.arange(table.widest, device=nodes.device)
        exists = edges < table.offsets[nodes + 1][:, None]
        codes = table.codes[edges.clamp_(max=table.codes.numel() - 1)]
        mask = torch.zeros(nodes.numel(), table.size + 1, dtype=torch.bool, device=nodes.device)
        mask.scatter_(1, torch.where(exists, codes, table.size), True)
        return mask[:, : table.size]

    def child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """Node of level + 1 behind each (node, code), any shape; -1 where no item has that prefix."""
        table = self.levels[level]
        keys = nodes * table.size + codes
        edges = torch.searchsorted(table.keys, keys).clamp_(max=table.keys.numel() - 1)
        found = (table.keys[edges] == keys) & (nodes >= 0) & (codes >= 0) & (codes < table.size)
        return torch.where(found, edges, -1)

    def children(self, level: int, nodes: Tensor) -> Tensor:
        """Number of children of each node, any shape."""
        offsets = self.levels[level].offsets
        return offsets[nodes + 1] - offsets[nodes]

    def items(self, leaves: Tensor) -> Tensor:
        """The catalogue row that each leaf decodes to (the most popular of those sharing it); -1 stays -1."""
        return torch.where(leaves < 0, -1, self.leaf_items[self.leaf_offsets[leaves.clamp(min=0)]])

    def expand(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Turn ranked leaves into ranked items: a leaf with n items becomes n places with its score.

        Args:
            leaves: [P, W] best first, -1 pads.
            scores: [P, W].
            width: places to keep.

        Returns:
            items [P, width] padded with -1, scores [P, width] padded with -inf.
        """
        counts = self.leaf_offsets[leaves.clamp(min=0) + 1] - self.leaf_offsets[leaves.clamp(min=0)]
        counts = torch.where(leaves < 0, 0, counts)
        ends = counts.cumsum(1)
        places = torch.arange(width, device=leaves.device).expand(leaves.shape[0], -1).contiguous()
        owner = torch.searchsorted(ends, places, right=True)
        exists = owner < leaves.shape[1]
        owner = owner.clamp(max=leaves.shape[1] - 1)
        within = places - (ends - counts).gather(1, owner)
        rows = self.leaf_offsets[leaves.clamp(min=0).gather(1, owner)] + within
        items = self.leaf_items[torch.where(exists, rows, 0)]
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
