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
from genrl.layouts.base import Layout, ThinkingLayout
from genrl.metrics.functional import exclude_history
from genrl.metrics.ranking import RankingMetrics, per_row_metrics
from genrl.ops import world_max
from genrl.policy.decode import rank
from genrl.policy.model import Policy
from genrl.policy.reasoning import Thoughts, conclude, think
from genrl.progress import progress_bar
from genrl.prompts.template import EvaluationBatches
from genrl.training.stream import seed_of

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
    codes = layout.codes_of_items()
    find = partial(rankings, policy, layout, config=config)
    return evaluate_rankings(find, batches, config, catalog, codes, policy.device, name, thinking=layout.thinking)


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


def rankings(policy: Policy, layout: Layout, prompts: Requests, config: EvaluateConfig) -> dict[str, Ranking]:
    """Rankings of the whole catalogue, `raw` and with each user's history `excluded`, behind the same thinking."""
    tokens, mask = prompts.tokens, prompts.mask
    search: Callable[..., Ranking] = partial(_without_thinking, policy, tokens, mask, config.beam)
    if isinstance(layout, ThinkingLayout):
        noise = thinking_noise(layout, tokens, mask, config)
        thoughts = think(policy, layout, tokens, mask, uniforms=noise, temperature=config.thinking_temperature)
        search = partial(_with_thinking, policy, thoughts, config.beam)
    if not config.exact:
        raw = search(layout)
        return {"raw": raw, "excluded": exclude_history(raw, prompts.history)}
    first = max(config.k)
    unseen = search(layout.filtered(deny=deniable(prompts.history, len(layout.codes_of_items()))), exact=first)
    return {"raw": search(layout, exact=first), "excluded": exclude_history(unseen, prompts.history)}


def _without_thinking(
    policy: Policy, tokens: Tensor, mask: Tensor, beam: int, layout: Layout, exact: int = 0
) -> Ranking:
    return rank(policy, layout, tokens, mask, beam, exact=exact)


def _with_thinking(policy: Policy, thoughts: Thoughts, beam: int, layout: ThinkingLayout, exact: int = 0) -> Ranking:
    return conclude(policy, layout, thoughts, beam, exact=exact).ranking


def thinking_noise(layout: Layout, tokens: Tensor, mask: Tensor, config: EvaluateConfig) -> Tensor | None:
    """Noise [P, samples, longest completion] in [0, 1) that thinking is drawn with; None for the likeliest words.

    The seed of a prompt is a number made of its tokens, so its noise depends neither on the batch that it is in nor on
    the number of processes, and `recommend` thinks as `evaluate` did.
    """
    if config.thinking_samples == 0:
        return None
    shape = (config.thinking_samples, layout.length)
    seeds = [seed_of(*row[real].tolist()) for row, real in zip(tokens.cpu(), mask.cpu(), strict=True)]
    noise = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(tokens.device)


def deniable(history: Tensor, items: int) -> Tensor:
    """Histories [P, H] as filters: nothing is denied to a user who has seen all items, as nothing would be left."""
    seen = history.sort(dim=1).values
    distinct = ((seen.diff(dim=1, prepend=torch.full_like(seen[:, :1], -1)) != 0) & (seen >= 0)).sum(1)
    return history.masked_fill((distinct >= items)[:, None], -1)
