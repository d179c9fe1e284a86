"""Vectors and biases of trie edges, and what they make of a state: logits of the children of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrl.sid.trie import Trie

Look = Callable[[Tensor], Tensor]
"""Edges [...] of a level -> their vectors [..., hidden]."""
BLOCK = 8
"""Rows that stand at one node and share one copy of its children's vectors."""
SMALL = 1e-25
"""Sum of exponentials below which float32 would lose some of them."""


class EdgeVectors(nn.Module):
    """A vector for every edge of a trie: that of its code, which edges of the level share, and one of its own.

    Codes carry over what is learned of one item to others, edges keep what only an item can know.

    Args:
        trie: its edges, level by level, in the order of the nodes behind them.
        hidden: width.
        start: standard deviation of the edges' own vectors.
        dropout: share of the edges that do without their own vector in a pass of training.
        biases: whether each edge has a number of its own, too.
    """

    def __init__(self, trie: Trie, hidden: int, start: float, dropout: float, *, biases: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.codes = nn.ParameterList(_normal(level.size, hidden, 0.02) for level in trie.levels)
        self.own = nn.ParameterList(_normal(level.codes.numel(), hidden, start) for level in trie.levels)
        self.biases = nn.ParameterList(torch.zeros(level.codes.numel()) for level in trie.levels) if biases else None
        for number, level in enumerate(trie.levels):
            counts = level.offsets.diff().long()
            self.register_buffer(f"code{number}", level.codes.long(), persistent=False)
            self.register_buffer(f"counts{number}", counts, persistent=False)
            self.register_buffer(f"siblings{number}", counts.repeat_interleave(counts), persistent=False)

    def forward(self, level: int, edges: Tensor | None = None) -> Tensor:
        """Vectors [..., hidden] of some edges [...] of a level, or of all."""
        codes, own = self.code(level), self.own[level]
        if edges is not None:
            codes, own = codes[edges], functional.embedding(edges, own)
        elif self.dropping:
            own = own * functional.dropout(own.new_ones(len(own), 1), self.dropout)
        return functional.embedding(codes, self.codes[level]) + own

    def code(self, level: int) -> Tensor:
        """Codes [edges] of a level."""
        codes: Tensor = getattr(self, f"code{level}")
        return codes

    def counts(self) -> list[Tensor]:
        """Children [nodes] of the nodes of each level."""
        return [getattr(self, f"counts{level}") for level in range(len(self.codes))]

    def siblings(self, level: int) -> Tensor:
        """[edges] of a level: number of edges that go out from the node of each, itself included."""
        counts: Tensor = getattr(self, f"siblings{level}")
        return counts

    @property
    def dropping(self) -> bool:
        """Whether edges do without their own vectors in this pass, the same ones wherever they stand in it."""
        return self.training and self.dropout > 0


def _normal(rows: int, width: int, deviation: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * deviation)


def child_logits(states: Tensor, vectors: Look, biases: Tensor, nodes: Tensor, counts: Tensor) -> Tensor:
    """Products of states with the edges that go out from their nodes.

    Rows at the same node are put together, `BLOCK` at a time, so that few copies of vectors are made.

    Args:
        states: [n, hidden].
        vectors: of edges [...] of the level, [..., hidden].
        biases: [edges].
        nodes: [n] first edge of each row.
        counts: [n] edges of each row, side by side; at least 1.

    Returns:
        [n, W] for the widest row of W edges; columns behind those of a row mean nothing.
    """
    if not len(states):  # keeps the gradient's path
        return torch.addmm(biases[:1], states, vectors(nodes.new_zeros(1)).T)
    order = nodes.argsort()
    at = nodes[order]
    opens = torch.ones_like(at, dtype=torch.bool)
    opens[1:] = at[1:] != at[:-1]
    place = torch.arange(len(at), device=at.device)
    within = place - torch.where(opens, place, 0).cummax(0).values
    block = ((within % BLOCK) == 0).cumsum(0) - 1
    slot = block * BLOCK + within % BLOCK
    firsts = ((within % BLOCK) == 0).nonzero()[:, 0]
    width = int(counts.max())
    columns = torch.arange(width, device=at.device)
    edges = at[firsts][:, None] + torch.minimum(columns, counts[order][firsts][:, None] - 1)
    rows = states.new_zeros(len(firsts) * BLOCK, states.shape[1]).index_copy(0, slot, states[order])
    products = torch.baddbmm(
        functional.embedding(edges, biases[:, None])[:, None, :, 0],
        rows.unflatten(0, (len(firsts), BLOCK)),
        vectors(edges).transpose(1, 2),
    ).flatten(0, 1)
    back = torch.empty_like(order).index_copy(0, order, slot)
    return products[back]


def log_sum_exp(logits: Tensor, sizes: Tensor) -> Tensor:
    """Of logits [m, n] of siblings side by side, over the `sizes` [f] siblings of each family: [f, n]."""
    families = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    zeros, highest = logits.new_zeros(len(sizes), logits.shape[1]), logits.detach().amax(0, keepdim=True)
    whole = zeros.index_add(0, families, (logits - highest).exp())
    if bool((whole < SMALL).any()):  # some family lies so far below the best edge that it needs a maximum of its own
        highest = torch.segment_reduce(logits.detach(), "max", lengths=sizes)
        whole = zeros.index_add(0, families, (logits - highest.index_select(0, families)).exp())
    return whole.log().add(highest)


def log_masses(scores: Tensor, counts: Sequence[Tensor]) -> list[Tensor]:
    """Log of the sum of exp(score) over the SIDs behind each edge: scores [leaves, n] -> [edges, n] of each level.

    `counts` are the children [nodes] of the nodes of each level, the root's first.
    """
    found = [scores]
    for children in reversed(counts[1:]):
        found.append(log_sum_exp(found[-1], children))
    return found[::-1]
