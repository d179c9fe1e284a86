"""The encoder of SASRec, its relatives and the item policy: causal self-attention over a history of items."""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""What a block remembers of the places it has read: keys and values [B, heads, L, hidden / heads]."""


class Block(nn.Module):
    """Pre-norm self-attention and a point-wise network of the same width, each with dropout and a residual path."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.network_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, 3 * hidden)
        self.join = nn.Linear(hidden, hidden)
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, states: Tensor, mask: Tensor, past: KeysValues | None = None, *, last: bool = False
    ) -> tuple[Tensor, KeysValues]:
        """Read states [B, Q, hidden] behind the past; give new ones (or the `last`, Q = 1), and all that was read.

        `mask` is broadcastable to [B, heads, Q, past + Q], True where a place may be attended to.
        """
        projected = self.project(self.attention_norm(states)).unflatten(2, (3 * self.heads, -1))
        query, key, value = projected.transpose(1, 2).chunk(3, dim=1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if last:
            query, mask, states = query[:, :, -1:], mask[..., -1:, :], states[:, -1:]
        mixed = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        states = states + self.drop(self.join(mixed.transpose(1, 2).flatten(2)))
        return states + self.drop(self.network(self.network_norm(states))), (key, value)


class Encoder(nn.Module):
    """Learnt positions and causal blocks.

    Positions are counted from the end, so that the latest item always has the same one and padding moves nothing.
    A place of padding attends to itself alone: its state is finite and no other place sees it.

    `heads` must divide `hidden`. `items`: see `ItemEncoder`; without them whoever calls gives the vectors.
    """

    def __init__(
        self, hidden: int, blocks: int, heads: int, dropout: float, max_length: int, items: int | None = None
    ) -> None:
        super().__init__()
        self.max_length = max_length
        if items is not None:
            self.items = nn.Embedding(items + 1, hidden, padding_idx=0)
        self.positions = nn.Embedding(max_length, hidden)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self.apply(_initialise)

    def encode(self, vectors: Tensor, real: Tensor, *, last: bool = False) -> tuple[Tensor, list[KeysValues]]:
        """Read vectors of items [B, L, hidden], right-aligned, where they are `real` [B, L]: as `ItemEncoder` does.

        Of the `last` place alone states are [B, 1, hidden].
        """
        length = vectors.shape[1]
        ages = torch.arange(length - 1, -1, -1, device=vectors.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=vectors.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=vectors.device)
        mask = (causal & real[:, None, None, :]) | itself
        return self.read(vectors * vectors.shape[2] ** 0.5 + self.positions(ages), mask, last=last)

    def read(
        self, inputs: Tensor, mask: Tensor, past: list[KeysValues] | None = None, *, last: bool = False
    ) -> tuple[Tensor, list[KeysValues]]:
        """Read inputs [B, Q, hidden] behind what the blocks remember; see `Block.forward`."""
        states, memory = self.drop(inputs), []
        for place, block in enumerate(self.blocks):
            only = last and place == len(self.blocks) - 1
            states, kept = block(states, mask, None if past is None else past[place], last=only)
            memory.append(kept)
        return self.norm(states), memory


class ItemEncoder(Encoder):
    """An encoder with embeddings of I items of its own: row 0 is padding, item i has row i + 1."""

    def __init__(self, items: int, hidden: int, blocks: int, heads: int, dropout: float, max_length: int) -> None:
        super().__init__(hidden, blocks, heads, dropout, max_length, items)

    @property
    def table(self) -> Tensor:
        """Embeddings of the catalogue [I, hidden], for scores."""
        return self.items.weight[1:]

    def forward(self, items: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Read histories [B, L], right-aligned, -1 pads: states [B, L, hidden], and what each block remembers."""
        return self.encode(self.items(items + 1), items >= 0)


def _initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, as in the transformers that such encoders are made of."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


def length_groups(items: Tensor, most: int = 8, least_rows: int = 16) -> list[tuple[Tensor, int]]:
    """Sort rows by length and cut them into groups, so that little time goes into padding.

    Most histories are short and a batch is as wide as its longest: on a CPU groups are several times faster. On an
    accelerator one group is.

    Args:
        items: catalogue rows [B, L], right-aligned, -1 pads.
        most: groups on a CPU, at most.
        least_rows: rows of a group, below which there are fewer groups.

    Returns:
        Row numbers and width (of the longest row, at least 1) of each group; of no rows one group of all columns.
    """
    lengths = (items >= 0).sum(dim=1)
    order = lengths.argsort(stable=True)
    count = max(1, min(most, len(items) // least_rows)) if items.device.type == "cpu" else 1
    if not len(items):
        return [(order, items.shape[1])]
    return [(rows, max(1, int(lengths[rows[-1]]))) for rows in order.chunk(count)]
