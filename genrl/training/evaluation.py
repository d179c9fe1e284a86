"""Full-catalogue evaluation of a policy, with the outcome of every row kept for paired tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.catalog.items import Catalog
from genrl.config.schema import EvaluateConfig
from genrl.data.prompts import EvaluationBatches
from genrl.layouts.base import Layout
from genrl.metrics.functional import exclude_history
from genrl.metrics.ranking import RankingMetrics, per_row_metrics
from genrl.ops import world_max
from genrl.policy.decode import rank
from genrl.policy.model import Policy
from genrl.progress import progress_bar
from genrl.types import PromptBatch, Ranking


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one set of rows, ranked raw and with each user's history taken out.

    Besides the metrics of `RankingMetrics` there is certified@K for the largest K: the share of rows whose first K
    items are provably those that scoring the whole catalogue would give.
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


@torch.no_grad()
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
    device = policy.device
    codes = layout.codes_of_items()
    metrics = {kind: ranking_metrics(config, catalog, codes.cpu()).to(device) for kind in ("raw", "excluded")}
    keyed = codes if config.level == "sid" else None
    rows, largest = batches.positions.numel(), max(config.k)
    ranks = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    certified = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    with progress_bar(name, rows, "users") as advance:
        for places, batch in zip(batches.rows, batches, strict=True):
            prompts = batch.to(device)
            for kind, shown in rankings(policy, layout, prompts, config).items():
                metrics[kind].update(shown, prompts.targets, history=prompts.history)
                ranks[kind][places.to(device)] = per_row_metrics(shown, prompts.targets, config.k, keyed)["rank"]
                certified[kind][places.to(device)] = shown.certified(largest).long()
            advance(len(prompts))
    values = {
        kind: {**metric.compute(), f"certified@{largest}": float(world_max(certified[kind]).float().mean())}
        for kind, metric in metrics.items()
    }
    return Evaluation(**values, ranks={kind: world_max(part).cpu() for kind, part in ranks.items()})


def rankings(policy: Policy, layout: Layout, prompts: PromptBatch, config: EvaluateConfig) -> dict[str, Ranking]:
    """Rankings of the whole catalogue, `raw` and with each user's history `excluded`."""
    if not config.exact:
        raw = rank(policy, layout, prompts.tokens, prompts.mask, config.beam)
        return {"raw": raw, "excluded": exclude_history(raw, prompts.history)}

    def search(allowed: Layout) -> Ranking:
        return rank(policy, allowed, prompts.tokens, prompts.mask, config.beam, exact=max(config.k))

    seen = prompts.history.sort(dim=1).values
    distinct = ((seen.diff(dim=1, prepend=torch.full_like(seen[:, :1], -1)) != 0) & (seen >= 0)).sum(1)
    everything = distinct >= len(layout.codes_of_items())  # a filter would leave nothing to users who have seen all
    unseen = search(layout.filtered(deny=prompts.history.masked_fill(everything[:, None], -1)))
    return {"raw": search(layout), "excluded": exclude_history(unseen, prompts.history)}
