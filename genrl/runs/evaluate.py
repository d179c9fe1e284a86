"""Full-catalogue evaluation of any recommender, with the outcome of every row kept for paired tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Role
from genrl.config.schema import EvaluateConfig
from genrl.metrics.ranking import RankingMetrics, per_row_metrics
from genrl.ops import world_max
from genrl.progress import progress_bar
from genrl.prompts.template import EvaluationBatches
from genrl.recommenders import Recommender

SPLITS = {"valid": Role.VALID, "test": Role.TEST}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one recommender on one set of rows, ranked raw and with each user's history taken out.

    Besides the metrics of `RankingMetrics` a beam search has certified@K for the largest K: the share of rows whose
    first K items are provably those that scoring the whole catalogue would give. Layouts with thinking have
    format_failure: the share of rows that got no item at all, because all their thinking failed; they count as misses.
    """

    raw: dict[str, float]
    excluded: dict[str, float]
    ranks: dict[str, Tensor]
    """`raw` and `excluded`: [R] 0-based place of each row's target, the ranking's width where it is missed."""


def ranking_metrics(config: EvaluateConfig, catalog: Catalog, codes: Tensor) -> RankingMetrics:
    """The metrics of a configuration."""
    return RankingMetrics(
        cold=catalog.cold,
        categories=catalog.categories,
        k=config.k,
        codes=codes,
        level=config.level,
        category_count=max(1, len(catalog.category_names)),
        ties=config.ties,
    )


def evaluated_rows(dataset: Dataset, config: EvaluateConfig, split: str) -> Tensor:
    """Positions that the tables of a split are about [R]; fewer than all are a random subset, the same in every run."""
    limit = {"valid": config.valid_users, "test": config.test_users}[split]
    positions = dataset.sequences.rows(SPLITS[split])
    if limit is None or positions.numel() <= limit:
        return positions
    chosen = torch.randperm(positions.numel(), generator=torch.Generator().manual_seed(0))[:limit]
    return positions[chosen.sort().values]


@torch.no_grad()
def evaluate(recommender: Recommender, batches: EvaluationBatches, config: EvaluateConfig, name: str) -> Evaluation:
    """Rank the whole catalogue for every row.

    Args:
        recommender: what ranks.
        batches: the rows, or this rank's share of them.
        config: beam width, cut-offs. With `exact` the ranking without the history is a search of its own in which
            items of the history are not legal; otherwise a policy's are taken out of the ranking.
        name: shown at the progress bar.
    """
    device, problem = recommender.device, recommender.problem
    codes = problem.table.codes
    metrics = {kind: ranking_metrics(config, problem.dataset.catalog, codes).to(device) for kind in ("raw", "excluded")}
    keyed = codes.to(device) if config.level == "sid" else None
    rows, largest = batches.positions.numel(), max(config.k)
    ranks = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    certified = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    failed = torch.full((rows,), -1, device=device)
    with progress_bar(name, rows, "users") as advance:
        for places, batch in zip(batches.rows, batches, strict=True):
            requests, places = batch.to(str(device)), places.to(device)
            found = recommender.rankings(requests, config)
            failed[places] = (found["raw"].items < 0).all(1).long()
            for kind, shown in found.items():
                metrics[kind].update(shown, requests.wanted, history=requests.history)
                ranks[kind][places] = per_row_metrics(shown, requests.wanted, config.k, keyed)["rank"]
                if shown.bound is not None:
                    certified[kind][places] = shown.certified(largest).long()
            advance(len(requests))
    values = {}
    for kind, metric in metrics.items():
        values[kind] = metric.compute()
        shares = world_max(certified[kind])
        if bool((shares >= 0).all()):
            values[kind][f"certified@{largest}"] = float(shares.float().mean())
        if recommender.thinks:
            values[kind]["format_failure"] = float(world_max(failed).float().mean())
    return Evaluation(**values, ranks={kind: world_max(part).cpu() for kind, part in ranks.items()})
