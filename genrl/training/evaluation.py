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


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one set of rows, ranked raw and with each user's history taken out."""

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
        config: beam width, cut-offs.
        catalog: categories and cold items.
        name: shown at the progress bar.
    """
    policy.eval()
    device = policy.device
    codes = layout.codes_of_items()
    metrics = {kind: ranking_metrics(config, catalog, codes.cpu()).to(device) for kind in ("raw", "excluded")}
    keyed = codes if config.level == "sid" else None
    rows = batches.positions.numel()
    ranks = {kind: torch.full((rows,), -1, device=device) for kind in metrics}
    with progress_bar(name, rows, "users") as advance:
        for places, batch in zip(batches.rows, batches, strict=True):
            prompts = batch.to(device)
            ranking = rank(policy, layout, prompts.tokens, prompts.mask, config.beam)
            for kind, shown in (("raw", ranking), ("excluded", exclude_history(ranking, prompts.history))):
                metrics[kind].update(shown, prompts.targets, history=prompts.history)
                ranks[kind][places.to(device)] = per_row_metrics(shown, prompts.targets, config.k, keyed)["rank"]
            advance(len(prompts))
    whole = {kind: world_max(part).cpu() for kind, part in ranks.items()}
    return Evaluation(metrics["raw"].compute(), metrics["excluded"].compute(), whole)
