"""Ranking metrics as pure functions; nothing here sees a score or a log-probability, only item rows in rank order.

Letters: P rows (users), W ranked items, M targets, K cut-off, C categories, I catalogue items. -1 is "no item" in
rankings and histories and "no target" in targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genrl.batches import Ranking


def first_occurrences(items: Tensor) -> Tensor:
    """Where an item stands in its row for the first time, never on "no item": [P, W] -> bool [P, W]."""
    ordered, places = items.sort(dim=1, stable=True)
    fresh = torch.ones_like(items, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(fresh).scatter_(1, places, fresh) & (items >= 0)


def compact(values: Tensor, keep: Tensor, fill: float = -1) -> Tensor:
    """Move the kept values of each row to its front, in order, and fill the rest.

    Example:
        >>> compact(torch.tensor([[7, 7, 3]]), torch.tensor([[True, False, True]])).tolist()
        [[7, 3, -1]]
    """
    places = (~keep).to(torch.int8).argsort(dim=1, stable=True)
    return values.gather(1, places).masked_fill(~keep.gather(1, places), fill)


def distinct(items: Tensor) -> Tensor:
    """Drop invalid and repeated items and close the gaps: [P, W] -> [P, W].

    Example:
        >>> distinct(torch.tensor([[7, -1, 7, 3]])).tolist()
        [[7, 3, -1, -1]]
    """
    return compact(items, first_occurrences(items))


def seen(items: Tensor, history: Tensor) -> Tensor:
    """Which items [P, W] are in the history [P, H] of their row: bool [P, W], never "no item"."""
    return (items.unsqueeze(2) == history.unsqueeze(1)).any(dim=2) & (items >= 0)


def exclude_history(ranking: Ranking, history: Tensor) -> Ranking:
    """Remove what the user has seen, history [P, H], from a ranking [P, W], closing the gaps; -1 (score -inf) pads.

    Rank W >= K + H items first if K must be left in every row.

    Example:
        >>> ranking = Ranking(torch.tensor([[4, 2, 9]]), torch.tensor([[3.0, 2.0, 1.0]]))
        >>> left = exclude_history(ranking, torch.tensor([[-1, 2]]))
        >>> left.items.tolist(), left.scores.tolist()
        ([[4, 9, -1]], [[3.0, 1.0, -inf]])
    """
    keep = ~seen(ranking.items, history) & (ranking.items >= 0)
    return Ranking(compact(ranking.items, keep), compact(ranking.scores, keep, -math.inf), ranking.bound)


def sid_keys(codes: Tensor) -> Tensor:
    """Number the distinct SIDs of a catalogue [I, K] -> [I]: items with equal codes get the same key."""
    return codes.unique(dim=0, return_inverse=True)[1]


def to_keys(items: Tensor, keys: Tensor | None) -> Tensor:
    """Replace items by their keys, keeping -1; without keys, the items themselves."""
    return items if keys is None else torch.where(items < 0, items, keys[items.clamp(min=0)])


def target_ranks(items: Tensor, targets: Tensor, keys: Tensor | None = None) -> Tensor:
    """Rank of each target [P, M] among the distinct valid items of its row [P, W], best first.

    With `keys` [I] (`sid_keys`), SIDs are compared instead of items, one place per distinct SID.

    Returns:
        int64 [P, M]: the 0-based rank; W where the target is not ranked; -1 where there is no target, or where it
        repeats an earlier target of the row.

    Example:
        >>> target_ranks(torch.tensor([[5, 5, 8, 2]]), torch.tensor([[8, 1, -1]])).tolist()
        [[1, 4, -1]]
    """
    items, targets = distinct(to_keys(items, keys)), to_keys(targets, keys)
    width = items.shape[1]
    found = items.unsqueeze(2) == targets.unsqueeze(1)
    places = torch.arange(width, device=items.device).view(1, -1, 1)
    ranks = torch.where(found, places, width).amin(dim=1)
    return ranks.masked_fill(~first_occurrences(targets), -1)


def has_target(ranks: Tensor) -> Tensor:
    """Rows with at least one target: bool [P]."""
    return (ranks >= 0).any(dim=1)


def recall_at_k(ranks: Tensor, k: int) -> Tensor:
    """Share of a row's targets that are among its first k items.

    recall@k = |top-k ∩ targets| / |targets|; with one target this is the hit rate. From `target_ranks` [P, M], float64
    [P]; 0 in rows without targets (leave them out with `has_target`).

    Example:
        >>> recall_at_k(torch.tensor([[0], [2], [20], [9]]), 5).mean().item()
        0.5
    """
    hits = ((ranks >= 0) & (ranks < k)).sum(dim=1)
    return hits.double() / (ranks >= 0).sum(dim=1).clamp(min=1)


def ndcg_at_k(ranks: Tensor, k: int) -> Tensor:
    """Discounted gain of the targets over the best that their number allows.

    ndcg@k = sum_{targets ranked r < k} 1/log2(r + 2)  /  sum_{i < min(k, number of targets)} 1/log2(i + 2)
    From `target_ranks` [P, M], float64 [P]; 0 in rows without targets.

    Example:
        >>> ndcg_at_k(torch.tensor([[0], [2], [20], [9]]), 5).mean().item()
        0.375
    """
    hit = (ranks >= 0) & (ranks < k)
    gains = torch.where(hit, 1 / torch.log2(ranks.clamp(min=0).double() + 2), 0.0).sum(dim=1)
    discounts = 1 / torch.log2(torch.arange(k, device=ranks.device, dtype=torch.float64) + 2)
    best = discounts.expand(k, k).tril().sum(dim=1)  # a cumulative sum that is deterministic on CUDA too
    ideal = best[(ranks >= 0).sum(dim=1).clamp(min=1, max=k) - 1]
    return gains / ideal


def reciprocal_rank_at_k(ranks: Tensor, k: int) -> Tensor:
    """1 over the place of the first target, counted from 1; 0 where none is among the first k items.

    From `target_ranks` [P, M], float64 [P]; their mean is the MRR.

    Example:
        >>> reciprocal_rank_at_k(torch.tensor([[0, 7], [3, 1], [9, 9]]), 5).tolist()
        [1.0, 0.5, 0.0]
    """
    hit = (ranks >= 0) & (ranks < k)
    return torch.where(hit, 1 / (ranks.clamp(min=0).double() + 1), 0.0).amax(dim=1)


def pass_at_k(hits: Tensor, samples: int, k: int) -> Tensor:
    """Probability that at least one of k completions hits, from `hits` [P] of n samples: float64 [P].

    pass@k = 1 - C(n - hits, k) / C(n, k), unbiased for k <= n (Chen et al. 2021, arXiv:2107.03374).

    Example:
        >>> pass_at_k(torch.tensor([0, 1, 2, 4]), 4, 2).tolist()
        [0.0, 0.5, 0.8333333333333334, 1.0]
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples: k must be from 1 to their number.")
    missed = (samples - hits)[:, None] - torch.arange(k, device=hits.device)
    return 1 - (missed.clamp(min=0).double() / (samples - torch.arange(k, device=hits.device))).prod(dim=1)


def needed_width(k: Sequence[int], codes: Tensor | None = None) -> int:
    """Items that a ranking must list for the largest cut-off; with codes [I, K], for as many different SIDs.

    Example:
        >>> needed_width([1, 2]), needed_width([1, 2], torch.tensor([[0], [1], [0], [2], [0]]))
        (2, 5)
    """
    if codes is None:
        return max(k)
    most = int(codes.unique(dim=0, return_counts=True)[1].max())
    return max(max(k), min(len(codes), max(k) * most))


def entropy_of_counts(counts: Tensor) -> Tensor:
    """Shannon entropy of the distribution that counts [..., C] describe, in nats: float64 [...]; 0 without counts."""
    counts = counts.double()
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(dim=-1)


def category_counts(items: Tensor, categories: Tensor, count: int) -> Tensor:
    """How often each of `count` categories [I] occurs among the items [P, K] of each row: int64 [P, C]."""
    known = torch.where(items < 0, -1, categories[items.clamp(min=0)])
    slots = torch.where(known < 0, count, known)
    counts = torch.zeros(items.shape[0], count + 1, dtype=torch.int64, device=items.device)
    return counts.scatter_add_(1, slots, torch.ones_like(slots))[:, :count]


def entropy_at_k(items: Tensor, categories: Tensor, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Entropy float64 [P] of the categories of each row's first k distinct items, in nats, and which rows have any."""
    counts = category_counts(distinct(items)[:, :k], categories, count)
    return entropy_of_counts(counts), counts.sum(dim=1) > 0


def largest_entropy(k: int, count: int) -> float:
    """The most that a list of k items over `count` categories can have, in nats: log min(k, count)."""
    return math.log(max(min(k, count), 1))


def exposures(items: Tensor, k: int, catalog_size: int, rows: Tensor | None = None) -> Tensor:
    """How often each item of the catalogue is among the first k distinct items of a row: [P, W] -> int64 [I].

    With `rows` bool [P], only these count.
    """
    top = distinct(items)[:, :k]
    counted = top >= 0 if rows is None else (top >= 0) & rows[:, None]
    places = torch.where(counted, top, catalog_size).flatten()  # one place more for all that does not count
    return top.new_zeros(catalog_size + 1).scatter_add_(0, places, torch.ones_like(places))[:-1]


def coverage(counts: Tensor) -> Tensor:
    """Share of the catalogue that is recommended at all, from `exposures` [I]."""
    return (counts > 0).double().mean()


def top_share(counts: Tensor, share: float = 0.01) -> Tensor:
    """Share of all recommended slots taken by the ⌈share·I⌉ most recommended items, from `exposures` [I]."""
    size = math.ceil(share * counts.numel())
    return counts.topk(size).values.sum().double() / counts.sum().clamp(min=1)


def gini(counts: Tensor) -> Tensor:
    """Gini coefficient of `exposures` [I]: 0 when all items are shown equally, (I - 1)/I when one takes all.

    G = 2 Σ_i i·x_(i) / (I Σ x) - (I + 1)/I with x sorted upwards; 0 without exposures.
    """
    size = counts.numel()
    ordered = counts.double().sort().values
    places = torch.arange(1, size + 1, device=counts.device, dtype=torch.float64)
    total = ordered.sum()
    value = 2 * (places * ordered).sum() / (size * total.clamp(min=1)) - (size + 1) / size
    return torch.where(total > 0, value, 0.0)


def corpus_entropy(counts: Tensor, categories: Tensor, count: int) -> Tensor:
    """Entropy of the categories of all recommended slots pooled, in nats, from `exposures` [I]."""
    places = torch.where(categories < 0, count, categories)  # one place more for items without a category
    pooled = counts.new_zeros(count + 1).index_add_(0, places, counts)
    return entropy_of_counts(pooled[:count])


def valid_slots(items: Tensor, k: int) -> Tensor:
    """Share of a row's first k slots that name an item of the catalogue: float64 [P]."""
    return (items[:, :k] >= 0).double().mean(dim=1)


def history_slots(items: Tensor, history: Tensor, k: int) -> Tensor:
    """Share of a row's first k slots that the user has seen already: float64 [P]."""
    return seen(distinct(items)[:, :k], history).double().sum(dim=1) / k
