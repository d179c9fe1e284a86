"""Rankings by the log-probability of every item, for policies that say all edges of the trie at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Protocol, cast

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests, concatenate
from genrl.layouts.base import BROKEN, ENDED
from genrl.layouts.items import ItemState
from genrl.layouts.sid import SidLayout
from genrl.policy.base import TrainablePolicy
from genrl.policy.edges import log_sum_exp
from genrl.sid.trie import Trie

LOGITS = 2**24
"""Logits that are held at a time: bounds memory, not results."""


class Everything(Protocol):
    """What a policy says of all edges behind n states."""

    def edges(self, level: int, which: Tensor) -> Tensor:
        """Float32 logits of edges [m] of a level: [m, n]."""

    def leaves(self) -> Tensor | None:
        """Float32 scores [leaves, n] of all SIDs, of which one softmax makes probabilities; None: edges have theirs."""

    def __getitem__(self, index: slice) -> Everything: ...

    def __len__(self) -> int: ...


@torch.no_grad()
def rank_all(policy: TrainablePolicy, layout: SidLayout, asked: Sequence[Requests], width: int) -> list[Ranking]:
    """The `width` best of the items that each request may get, with the scores they have in the whole catalogue.

    Args:
        policy: one that `ranks_all`.
        layout: grammar of the completions.
        asked: P prompts, padded on the left, under one or more filters of items.
        width: places of each ranking.
    """
    trie, rows = layout.catalogue.trie, max(1, LOGITS // layout.catalogue.trie.leaves)

    def ranked(said: Everything) -> list[Ranking]:
        parts: list[list[Ranking]] = [[] for _ in asked]
        for start in range(0, max(1, len(said)), rows):
            scores = leaf_log_probs(said[start : start + rows], trie).T.contiguous()
            for found, requests in zip(parts, asked, strict=True):
                found.append(best(layout, scores, requests.rows(slice(start, start + rows)), width))
        return [reduce(concatenate, found) for found in parts]

    return policy.grow(asked[0], 1, 0).begin(lambda said: ranked(cast(Everything, said)))


@torch.no_grad()
def leaf_log_probs(said: Everything, trie: Trie) -> Tensor:
    """Log-probabilities [leaves, n] of all SIDs behind n states.

    An only child has probability 1 and takes no product. Columns are states, so that what a node's children share is
    worked out for all of them at once.
    """
    scores = said.leaves()
    if scores is not None:
        return scores - scores.logsumexp(0)
    total = torch.zeros(1, len(said), device=trie.device)
    for level, table in enumerate(trie.levels):
        counts = table.offsets.diff().long()
        parents = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        choice = counts > 1
        edges, nodes = choice[parents].nonzero()[:, 0], choice.nonzero()[:, 0]
        if not len(edges):
            total = total.index_select(0, parents)
            continue
        logits = said.edges(level, edges)
        total = total.to(logits.dtype).index_add_(0, nodes, log_sum_exp(logits, counts[nodes]), alpha=-1)
        total = total.index_select(0, parents)
        total = total.add_(logits) if len(edges) == len(parents) else total.index_add_(0, edges, logits)
    return total


def best(layout: SidLayout, scores: Tensor, requests: Requests, width: int) -> Ranking:
    """Ranking by the scores [P, leaves] of all SIDs; the bound is the score of the first item that is not listed."""
    left = layout.catalogue.open_leaves(requests)
    scores = scores if left is None else scores.masked_fill(~left, float("-inf"))
    found, leaves = scores.topk(min(width + 1, scores.shape[1]), dim=1)
    ended = torch.where(found == float("-inf"), BROKEN, ENDED)
    owner = torch.arange(len(scores), device=scores.device)[:, None].expand_as(leaves)
    state = ItemState(*(part.flatten() for part in (ended, owner, leaves)))
    items, found = layout.rank(state, found, width + 1, requests)
    return Ranking(items[:, :width], found[:, :width], found[:, width])
