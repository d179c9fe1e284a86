"""Full-catalogue evaluation, with the outcome of every row kept for paired tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Role
from genrl.config.schema import EvaluateConfig
from genrl.layouts.base import Layout
from genrl.metrics.ranking import RankingMetrics, per_row_metrics
from genrl.ops import world_max
from genrl.policy.model import Policy
from genrl.progress import progress_bar
from genrl.prompts.prompts import EvaluationBatches
from genrl.recommenders.policy import rankings

SPLITS = {"valid": Role.VALID, "test": Role.TEST}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one set of rows, ranked raw and with each user's history taken out.

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
    )


def evaluated_rows(dataset: Dataset, config: EvaluateConfig, split: str) -> Tensor:
    """Positions that the tables of a split are about [R]; fewer than all are a random subset, the same in every run."""
    limit = {"valid": config.valid_users, "test": config.test_users}[split]
    positions = dataset.sequences.rows(SPLITS[split])
    if limit is None or positions.numel() <= limit:
        return positions
    chosen = torch.randperm(positions.numel(), generator=torch.Generator().manual_seed(0))[:limit]
    return positions[chosen.sort().values]


def evaluate(
    policy: Policy, layout: Layout, batches: EvaluationBatches, config: EvaluateConfig, catalog: Catalog, name: str
) -> Evaluation:
    """Rank the whole catalogue for every row by constrained beam search.

    Args:
        policy: what ranks; left in eval mode.
        layout: grammar of the completions, on the policy's device.
        batches: the rows, or this rank's share of them.
        config: beam width, cut-offs. With `exact` the ranking without the history is a search of its own in which
            items of the history are not legal; otherwise they are taken out of the ranking.
        catalog: categories and cold items.
        name: shown at the progress bar.
    """
    policy.eval()
    codes = layout.codes
    find = partial(rankings, policy, layout, config=config)
    return evaluate_rankings(find, batches, config, catalog, codes, policy.device, name, thinking=layout.writes_text)


@torch.no_grad()
def evaluate_rankings(
    find: Callable[[Requests], Mapping[str, Ranking]],
    batches: EvaluationBatches,
    config: EvaluateConfig,
    catalog: Catalog,
    codes: Tensor,
    device: torch.device,
    name: str,
    thinking: bool = False,
) -> Evaluation:
    """Score rankings of the whole catalogue.

    Args:
        find: rows -> their rankings, `raw` and `excluded`.
        batches: the rows, or this rank's share of them.
        config: cut-offs and what a hit is.
        catalog: categories and cold items.
        codes: [I, K] SIDs.
        device: where rankings are made.
        name: shown at the progress bar.
        thinking: whether the thinking may fail that the rankings come from.
    """
    metrics = {kind: ranking_metrics(config, catalog, codes.cpu()).to(device) for kind in ("raw", "excluded")}
    keyed = codes if config.level == "sid" else None
    rows, largest = batches.positions.numel(), max(config.k)
    ranks = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    certified = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    failed = torch.full((rows,), -1, device=device)
    with progress_bar(name, rows, "users") as advance:
        for places, batch in zip(batches.rows, batches, strict=True):
            prompts = batch.to(device)
            found = find(prompts)
            failed[places.to(device)] = (found["raw"].items < 0).all(1).long()
            for kind, shown in found.items():
                metrics[kind].update(shown, prompts.wanted, history=prompts.history)
                ranks[kind][places.to(device)] = per_row_metrics(shown, prompts.wanted, config.k, keyed)["rank"]
                if shown.bound is not None:
                    certified[kind][places.to(device)] = shown.certified(largest).long()
            advance(len(prompts))
    values = {}
    for kind, metric in metrics.items():
        values[kind] = metric.compute()
        shares = world_max(certified[kind])
        if bool((shares >= 0).all()):
            values[kind][f"certified@{largest}"] = float(shares.float().mean())
        if thinking:
            values[kind]["format_failure"] = float(world_max(failed).float().mean())
    return Evaluation(**values, ranks={kind: world_max(part).cpu() for kind, part in ranks.items()})
