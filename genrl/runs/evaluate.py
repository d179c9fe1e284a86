"""Full-catalogue evaluation of any recommender, with the outcome of every row kept for paired tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Role
from genrl.config.schema import EvaluateConfig
from genrl.errors import DataError
from genrl.metrics.functional import distinct, seen
from genrl.metrics.ranking import RankingMetrics, per_row_metrics
from genrl.ops import world_max
from genrl.progress import progress_bar
from genrl.prompts.template import EvaluationBatches
from genrl.recommenders import Recommender
from genrl.recommenders.base import KINDS
from genrl.recommenders.policy import PolicyRecommender
from genrl.training.portions import ranking_portions

SPLITS = {"valid": Role.VALID, "test": Role.TEST}


THOUGHTS = 8
"""Thoughts of reading `marginal` where the options say nothing."""
NONE_REACHED = (
    "none of {:,} candidate pools holds its target, so no number can be above 0. Set data.pool.target=true, make "
    "data.pool.size or data.pool.neighbours larger, or set data.pool.seen=true where users come back to items."
)
"""What is said of rows whose targets are in no pool."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one recommender on one set of rows, ranked raw and with each user's history taken out.

    Besides the metrics of `RankingMetrics`, for the largest K: short@K, the share of rows whose list has fewer than K
    items though there are more to rank, and of searches certified@K, the share of rows whose first K items are provably
    those that scoring the whole catalogue would give. Layouts with thinking have format_failure: the share of rows that
    got no item at all, because all their thinking failed; they count as misses. Inside candidate pools (`data.pool`)
    there are pool_size, the mean number of candidates, and pool_ceiling, the share of the targets that are among them:
    no recall is higher. With `evaluate.pass_at` policies have
    pass@K. Reading `greedy` has information: how much likelier the thinking makes the target, nats, mean over the rows
    where it did not fail.
    """

    raw: dict[str, float]
    excluded: dict[str, float]
    ranks: dict[str, Tensor]
    """`raw` and `excluded`: [R] 0-based place of each row's target, the ranking's width where it is missed."""
    readings: dict[str, Evaluation] = field(default_factory=dict)
    """Layouts with thinking, on request: what the same weights score `plain`, without it, `greedy`, behind the
    likeliest words, and `marginal`, by the mean over many thoughts."""


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


def evaluate(recommender: Recommender, batches: EvaluationBatches, config: EvaluateConfig, name: str) -> Evaluation:
    """Rank the whole catalogue for every row, and once more for each reading that is asked for.

    Args:
        recommender: what ranks.
        batches: the rows, or this rank's share of them.
        config: beam width, cut-offs.
        name: shown at the progress bar.
    """
    found = _evaluate(recommender, batches, config, name)
    if not (config.readings and recommender.thinks and isinstance(recommender, PolicyRecommender)):
        return found
    greedy = replace(config, pass_at=None, empty_thought=False, thinking_samples=0)
    ways: dict[str, tuple[Recommender, EvaluateConfig]] = {
        "plain": (recommender.under(recommender.layout.plain), greedy),
        "greedy": (recommender, greedy),
        "marginal": (recommender, replace(greedy, thinking_samples=config.thinking_samples or THOUGHTS)),
    }
    read = {
        way: _evaluate(one, batches, options, f"{name}, {way}", tell=way == "greedy")
        for way, (one, options) in ways.items()
    }
    return replace(found, readings=read)


@dataclass(frozen=True)
class _Look:
    """What a recommender makes of some requests."""

    requests: Requests
    rankings: dict[str, Ranking]
    told: Tensor | None
    """Information of the thinking [P]."""
    passes: dict[str, dict[str, Tensor]]
    """`pass@K` [P] of each kind."""


def _looks(
    recommender: Recommender, batches: EvaluationBatches, config: EvaluateConfig, *, tell: bool
) -> Iterator[tuple[Tensor, _Look]]:
    """Places and what is found there; of a batch in one part, or in as many as memory has room for.

    Nothing of a batch comes before all of it is there, so what counts it need not know of memory.
    """
    policy = recommender if isinstance(recommender, PolicyRecommender) else None
    kinds, portions = KINDS if policy and config.pass_at else (), ranking_portions()
    for places, batch in zip(batches.rows, batches, strict=True):
        asked, there = batch.to(str(recommender.device)), places.to(recommender.device)

        def look(own: slice, asked: Requests = asked, there: Tensor = there) -> tuple[Tensor, _Look]:
            requests = asked.rows(own)
            rankings = recommender.rankings(requests, config)
            told = policy.information(requests) if policy and tell else None
            passes = {kind: policy.passes(requests, config, kind) for kind in kinds} if policy else {}
            return there[own], _Look(requests, rankings, told, passes)

        yield from portions.over(len(asked), look)


@torch.no_grad()
def _evaluate(
    recommender: Recommender, batches: EvaluationBatches, config: EvaluateConfig, name: str, *, tell: bool = False
) -> Evaluation:
    device, problem = recommender.device, recommender.problem
    codes = problem.table.codes
    metrics = {kind: ranking_metrics(config, problem.dataset.catalog, codes).to(device) for kind in KINDS}
    keyed = codes.to(device) if config.level == "sid" else None
    samples = (config.pass_at or []) if isinstance(recommender, PolicyRecommender) else []
    count, largest = batches.positions.numel(), max(config.k)
    names = (
        "rank",
        "format_failure",
        "information",
        "pool_size",
        "pool_ceiling",
        f"short@{largest}",
        f"certified@{largest}",
        *(f"pass@{n}" for n in samples),
    )
    none = {name: -1.0 for name in names} | {"information": float("-inf")}
    kept = {kind: {name: torch.full((count,), none[name], device=device) for name in names} for kind in KINDS}
    with progress_bar(name, count, "users") as advance:
        for places, look in _looks(recommender, batches, config, tell=tell):
            requests = look.requests
            past = (distinct(requests.history) >= 0).sum(1)
            for kind, shown in look.rankings.items():
                metrics[kind].update(shown, requests.wanted, history=requests.history)
                found = {"rank": per_row_metrics(shown, requests.wanted, config.k, keyed)["rank"]}
                left = len(codes) - past if kind == "excluded" else torch.full_like(past, len(codes))
                if requests.pool is not None:
                    left = _candidates(requests, requests.history if kind == "excluded" else None)
                    found |= {"pool_size": _candidates(requests), "pool_ceiling": _reached(requests)}
                listed = (shown.items[:, :largest] >= 0).sum(1)
                found[f"short@{largest}"] = listed < left.clamp(max=largest)
                if shown.bound is not None:  # a list of all that is left is proven, too
                    found[f"certified@{largest}"] = shown.certified(largest) | (listed >= left)
                if recommender.thinks:
                    found["format_failure"] = (shown.items < 0).all(1)
                found |= look.passes.get(kind, {})
                if look.told is not None:
                    found["information"] = look.told
                for name, values in found.items():
                    kept[kind][name][places] = values.float()
            advance(len(requests))
    scored: dict[str, dict[str, float]] = {}
    ranks: dict[str, Tensor] = {}
    for kind, metric in metrics.items():
        found = {name: world_max(values).cpu() for name, values in kept[kind].items()}
        ranks[kind] = found.pop("rank").long()
        scored[kind] = metric.compute()
        known = {name: values[values > none[name]] for name, values in found.items()}
        scored[kind] |= {name: float(values.mean()) for name, values in known.items() if len(values)}
    _check_reached(scored["raw"], count)
    return Evaluation(scored["raw"], scored["excluded"], ranks)


def check_reached(batches: EvaluationBatches) -> None:
    """Refuse, before anything is trained, rows none of whose candidate pools holds its target.

    Pools are made up to the first batch that has one.

    Raises:
        DataError: if there is none.
    """
    pools = batches.maker.pools
    if pools is None or not len(batches.positions):
        return
    if not any(bool(pools.at(batches.positions[rows]).reached.any()) for rows in batches.rows):
        raise DataError(NONE_REACHED.format(len(batches.positions)))


def _check_reached(scored: dict[str, float], count: int) -> None:
    """Refuse numbers inside pools without any target."""
    if scored.get("pool_ceiling") == 0:
        raise DataError(NONE_REACHED.format(count))


def _candidates(requests: Requests, without: Tensor | None = None) -> Tensor:
    """How many items [P] the pools hold, but for those in the rows of `without` [P, H]."""
    assert requests.pool is not None
    pool = distinct(requests.pool)
    there = (pool >= 0).sum(1)
    return there if without is None else there - seen(pool, without).sum(1)


def _reached(requests: Requests) -> Tensor:
    """Share [P] of the targets of each request that are in its pool."""
    assert requests.pool is not None
    targets = requests.wanted.items
    return seen(targets, requests.pool).sum(1) / (targets >= 0).sum(1).clamp(min=1)
