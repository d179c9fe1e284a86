"""The ranking metrics as a torchmetrics class: sums only, so several processes and padded rows give exact results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from genrl.batches import Ranking, Targets
from genrl.metrics import functional as F

NATS = math.log(2)
"""In a bit."""
TIES = ("tied", "untied")
"""Targets with the time of the interaction before them, and the others."""


class RankingMetrics(Metric):
    """Every ranking metric behind one `update` and one `compute`.

    For each cut-off k: recall@k, ndcg@k, mrr@k, cold_recall@k, entropy@k (mean per list, bits),
    entropy_normalized@k (over its bound log2 min(k, categories)), entropy_corpus@k (all slots pooled, bits),
    coverage@k, top1pct_share@k, gini@k, and history_share@k if `update` was given histories; then also target_seen,
    the share of rows with a target in their history, where there are any. For the largest k: valid_rate. The
    denominators: rows (with a target) and cold_rows. A mean over no rows is NaN, and so are the entropies of a
    catalogue without categories.

    Args:
        cold: bool [I].
        categories: [I] int64, -1 unknown.
        k: cut-offs.
        codes: [I, K] SIDs; needed for `level="sid"`.
        level: whether recall, ndcg and cold recall compare items or SIDs.
        category_count: by default the largest id + 1.
        ties: add tied_recall@k, tied_ndcg@k, untied_recall@k and untied_ndcg@k over the rows whose target has, or has
            not, the time of the interaction before it, with tied_rows and untied_rows; the targets must say which.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor
    exposures: Tensor
    cold: Tensor
    categories: Tensor

    def __init__(
        self,
        cold: Tensor,
        categories: Tensor,
        k: Sequence[int] = (5, 10),
        codes: Tensor | None = None,
        level: Literal["item", "sid"] = "item",
        category_count: int | None = None,
        ties: bool = False,
    ) -> None:
        super().__init__()
        if not k or min(k) < 1:
            raise ValueError(f"RankingMetrics needs cut-offs k >= 1, got {list(k)}.")
        if level == "sid" and codes is None:
            raise ValueError("RankingMetrics(level='sid') needs the codes [I, K] of the SID table.")
        self.k = tuple(sorted(set(k)))
        self.category_count = int(categories.max()) + 1 if category_count is None else category_count
        keys = F.sid_keys(codes) if level == "sid" and codes is not None else None
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("cold", cold, persistent=False)
        self.register_buffer("categories", categories, persistent=False)
        per_cut = ("recall", "ndcg", "mrr", "cold_recall", "entropy", "history_share")
        self.names = (*(f"{name}@{k}" for k in self.k for name in per_cut), "valid_rate", "target_seen")
        self.ties = ties
        if ties:
            by_ties = tuple(f"{name}_{metric}@{k}" for name in TIES for metric in ("recall", "ndcg") for k in self.k)
            self.names = (*self.names, *by_ties)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        shape = (len(self.k), cold.shape[0])
        self.add_state("exposures", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, ranking: Ranking, targets: Targets, rows: Tensor | None = None, history: Tensor | None = None
    ) -> None:
        """Add P rankings, at least as wide as the largest k, with their targets.

        Args:
            ranking: P rows.
            targets: [P, M].
            rows: bool [P]; rows to count, None for all.
            history: catalogue rows [P, H] that the user has seen, for history_share.
        """
        check_width(ranking, self.k[-1])
        values = self._row_values(ranking, targets, history)
        nothing = (torch.zeros_like(self.sums[:1]), torch.zeros_like(self.counts[:1], dtype=torch.bool))
        sums, counts = [], []
        for name in self.names:
            value, counted = values.get(name, nothing)
            counted = counted if rows is None or name not in values else counted & rows
            sums.append(torch.where(counted, value, 0.0).sum())
            counts.append(counted.sum())
        exposures = [F.exposures(ranking.items, k, self.exposures.shape[1], rows) for k in self.k]
        # Not in place: states that were reset in inference mode cannot be changed outside it.
        self.sums = self.sums + torch.stack(sums)
        self.counts = self.counts + torch.stack(counts)
        self.exposures = self.exposures + torch.stack(exposures)

    def _row_values(
        self, ranking: Ranking, targets: Targets, history: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (value of each row, which rows count)."""
        ranks = F.target_ranks(ranking.items, targets.items, self.keys)  # type: ignore[arg-type]
        cold_ranks = F.target_ranks(ranking.items, cold_targets(targets.items, self.cold), self.keys)  # type: ignore[arg-type]
        everywhere = torch.ones_like(ranks[:, 0], dtype=torch.bool)
        aimed = F.has_target(ranks)
        values = {"valid_rate": (F.valid_slots(ranking.items, self.k[-1]), everywhere)}
        if history is not None:
            values["target_seen"] = F.seen(targets.items, history).any(dim=1).double(), aimed
        for k in self.k:
            values[f"recall@{k}"] = F.recall_at_k(ranks, k), aimed
            values[f"ndcg@{k}"] = F.ndcg_at_k(ranks, k), aimed
            values[f"mrr@{k}"] = F.reciprocal_rank_at_k(ranks, k), aimed
            values[f"cold_recall@{k}"] = F.recall_at_k(cold_ranks, k), F.has_target(cold_ranks)
            values[f"entropy@{k}"] = F.entropy_at_k(ranking.items, self.categories, self.category_count, k)
            if history is not None:
                values[f"history_share@{k}"] = F.history_slots(ranking.items, history, k), everywhere
        if self.ties and targets.tied is not None:
            tied = targets.tied.any(dim=1)
            for name, inside in zip(TIES, (tied, ~tied), strict=True):
                whole = [metric for metric in values if metric.startswith(("recall@", "ndcg@"))]
                values |= {f"{name}_{metric}": (values[metric][0], aimed & inside) for metric in whole}
        return values

    def _shown(self, exposure: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What exposures [I] say: entropy of their categories in nats, coverage, share of the top 1%, Gini."""
        entropy = F.corpus_entropy(exposure, self.categories, self.category_count)
        return entropy, F.coverage(exposure), F.top_share(exposure), F.gini(exposure)

    def compute(self) -> dict[str, float]:
        """Name -> value over all rows of all processes."""
        known = torch.stack([self.sums / self.counts, self.counts.double()]).tolist()  # the host looks once
        means, counts = (dict(zip(self.names, values, strict=True)) for values in known)
        shown = torch.stack([torch.stack(self._shown(exposure)).double() for exposure in self.exposures]).tolist()
        result: dict[str, float] = {}
        for place, k in enumerate(self.k):
            pooled, covered, share, inequality = shown[place]
            result |= {f"{name}@{k}": means[f"{name}@{k}"] for name in ("recall", "ndcg", "mrr", "cold_recall")}
            result[f"entropy@{k}"] = means[f"entropy@{k}"] / NATS
            bound = F.largest_entropy(k, self.category_count)
            result[f"entropy_normalized@{k}"] = means[f"entropy@{k}"] / (bound or 1.0)  # a bound of 0: entropy is 0
            result[f"entropy_corpus@{k}"] = pooled / NATS if self.category_count else math.nan
            result[f"coverage@{k}"] = covered
            result[f"top1pct_share@{k}"] = share
            result[f"gini@{k}"] = inequality
            if counts[f"history_share@{k}"]:
                result[f"history_share@{k}"] = means[f"history_share@{k}"]
        result["valid_rate"] = means["valid_rate"]
        if means["target_seen"] > 0:  # not a number without histories
            result["target_seen"] = means["target_seen"]
        result["rows"] = float(counts[f"recall@{self.k[-1]}"])
        result["cold_rows"] = float(counts[f"cold_recall@{self.k[-1]}"])
        if self.ties:
            result |= {name: means[name] for name in self.names if name.startswith(TIES)}
            result |= {f"{name}_rows": float(counts[f"{name}_recall@{self.k[-1]}"]) for name in TIES}
        return result


def per_row_metrics(
    ranking: Ranking, targets: Targets, k: Sequence[int] = (5, 10), codes: Tensor | None = None
) -> dict[str, Tensor]:
    """Outcomes of each row, for paired tests between two models on the same rows.

    `rank` int64 [P]: best rank of a target, W if none is ranked, -1 without targets; recall@k, ndcg@k float64 [P]. With
    `codes` [I, K], SIDs are compared instead of items.

    Example:
        >>> ranking = Ranking(torch.tensor([[4, 2]]), torch.tensor([[2.0, 1.0]]))
        >>> outcomes = per_row_metrics(ranking, Targets(torch.tensor([[2]])), k=[1, 2])
        >>> outcomes["rank"].tolist(), outcomes["recall@2"].tolist()
        ([1], [1.0])
    """
    check_width(ranking, max(k))
    ranks = F.target_ranks(ranking.items, targets.items, None if codes is None else F.sid_keys(codes))
    width = ranking.items.shape[1]
    best = torch.where(ranks < 0, width, ranks).amin(dim=1)
    outcomes = {"rank": torch.where(F.has_target(ranks), best, -1)}
    for cut in k:
        outcomes[f"recall@{cut}"] = F.recall_at_k(ranks, cut)
        outcomes[f"ndcg@{cut}"] = F.ndcg_at_k(ranks, cut)
    return outcomes


def cold_targets(targets: Tensor, cold: Tensor) -> Tensor:
    """Leave only the cold targets: [P, M] -> [P, M] with -1 for the others."""
    return torch.where((targets >= 0) & cold[targets.clamp(min=0)], targets, -1)


def check_width(ranking: Ranking, k: int) -> None:
    """Refuse a ranking that is too narrow for a cut-off: what it left out would count as misses."""
    width = ranking.items.shape[1]
    if width < k:
        raise ValueError(f"a ranking of {width} items cannot give metrics @{k}; rank at least {k} (evaluate.beam).")
