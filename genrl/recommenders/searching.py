"""Rankings by beam search: of policies, and of baselines that write Semantic IDs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests, concatenate
from genrl.config.schema import EvaluateConfig
from genrl.layouts.base import Layout
from genrl.layouts.sid import SidLayout
from genrl.metrics.functional import distinct, exclude_history, needed_width
from genrl.ops import seed_of, sent
from genrl.options import option
from genrl.policy.base import TrainablePolicy
from genrl.policy.distribution import RANKING, Sampling
from genrl.policy.exhaustive import rank_all
from genrl.policy.protocol import Generative
from genrl.policy.search import search, think
from genrl.recommenders.base import KINDS, TrainedBaseline, TrainingConfig, deniable, numerics

SMALL = 512
"""SIDs of a catalogue up to which exact rankings by several thoughts search all of it at once, which scores all items
behind all thoughts; where there is one, a beam that is widened takes less."""


@dataclass(frozen=True)
class SearchingConfig(TrainingConfig):
    """How a recommender that writes Semantic IDs is trained and searched."""

    beam: int = option(20, ge=1)
    """Least width of the beam; it grows with the largest K, and final tables widen it further (`evaluate.exact`)."""


class SearchingBaseline(TrainedBaseline):
    """A baseline that writes Semantic IDs and is searched as policies are: exact, where it is asked for.

    Attributes:
        config: its options, those of the search among them.
        layout: grammar of what it writes.
        sampling: what its probabilities sum to one over.
    """

    config: SearchingConfig
    layout: SidLayout
    sampling: Sampling = RANKING

    @property
    @abstractmethod
    def writer(self) -> Generative:
        """What is searched."""

    @abstractmethod
    def asked(self, requests: Requests) -> list[tuple[Tensor, Requests]]:
        """Requests as the model reads them, with whole histories and their filters, in parts: row numbers and rows."""

    @torch.no_grad()
    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        return self.rank(bare(histories, deny), width)

    @torch.no_grad()
    def rank(self, requests: Requests, width: int, exact: bool = False) -> Ranking:
        layout, beams, first = self.on_device(), max(self.config.beam, width), width if exact else 0
        find = partial(search, self.writer, layout, sampling=self.sampling, beams=min(beams, layout.completions))
        with numerics(self.trainer, self.device):
            parts = self.asked(requests.to(str(self.device)))
            return _whole([(rows, find(part, width, exact=first)[0]) for rows, part in parts])

    @torch.no_grad()
    def rankings(self, requests: Requests, config: EvaluateConfig, kinds: Sequence[str] = KINDS) -> dict[str, Ranking]:
        self.eval()
        find = partial(rankings, self.writer, self.on_device(), sampling=self.sampling, kinds=kinds)
        with numerics(self.trainer, self.device):
            parts = self.asked(requests.to(str(self.device)))
            found = [(rows, find(part, config=replace(config, beam=self.config.beam))) for rows, part in parts]
        return {kind: _whole([(rows, each[kind]) for rows, each in found]) for kind in kinds}

    def on_device(self) -> SidLayout:
        """The layout on the device of the weights."""
        self.layout = self.layout.to(str(next(self.parameters()).device))
        return self.layout


def bare(histories: Tensor, deny: Tensor | None = None, pool: Tensor | None = None) -> Requests:
    """Histories [P, H] and filters without prompts."""
    return Requests(histories[:, :0], histories[:, :0] >= 0, histories, pool=pool, deny=deny)


def _whole(parts: Sequence[tuple[Tensor, Ranking]]) -> Ranking:
    """Rankings of rows, in the order of their numbers."""
    order = torch.cat([rows for rows, _ in parts])
    return reduce(concatenate, (found for _, found in parts)).rows(order.argsort())


def rankings(
    policy: Generative,
    layout: Layout,
    prompts: Requests,
    config: EvaluateConfig,
    kinds: Sequence[str] = KINDS,
    sampling: Sampling = RANKING,
) -> dict[str, Ranking]:
    """Rankings of the whole catalogue, `raw` and with each user's history `excluded`, behind the same thinking.

    The ranking of a policy that writes slates is its slate, see `slates`; there is one search for each kind.

    Otherwise one search serves both for the users for whom it is certified; without `exact`, and where beams think
    between the tokens of an item so that nothing is widened, there is a second one for the others, in which the items
    of their history are not legal. Exact lists are as long as the largest cut-off needs, others as long as the beam.
    """
    count = needed_width(config.k, layout.codes if config.level == "sid" else None)
    denied = deniable(prompts, len(layout.codes), layout.items)
    if layout.writes_slates:
        filters = {"raw": prompts, "excluded": replace(prompts, deny=denied)}
        shown = {kind: slates(policy, layout, filters[kind], count, config, sampling) for kind in kinds}
        return {k: exclude_history(v, prompts.history) if k == "excluded" else v for k, v in shown.items()}
    if isinstance(policy, TrainablePolicy) and policy.ranks_all:
        filters = {"raw": prompts, "excluded": replace(prompts, deny=denied)}
        every = rank_all(policy, cast(SidLayout, layout), [filters[kind] for kind in kinds], count)
        shown = dict(zip(kinds, every, strict=True))
        return {k: exclude_history(v, prompts.history) if k == "excluded" else v for k, v in shown.items()}
    noise = thinking_noise(layout, prompts, config)
    sampling = replace(sampling, thinking_temperature=config.thinking_temperature)
    behind = think(policy, layout, prompts, sampling, noise)
    find = partial(search, policy, layout, sampling=sampling, plain=config.empty_thought)
    if config.exact and not layout.writes_between:
        seen = int((distinct(prompts.history) >= 0).sum(1).max())
        merged = len(behind) > 1 or (config.empty_thought and layout.writes_text)
        beams = min(layout.completions, max(config.beam, count + min(count, seen)))
        beams = layout.completions if merged and layout.completions <= SMALL else beams
        raw, _ = find(prompts, count + seen, noise=noise, behind=behind, exact=count, besides=denied, beams=beams)
        found = {"raw": raw, "excluded": exclude_history(raw, prompts.history)}
        return {kind: _cut(found[kind], count) for kind in kinds}
    places = max(count, min(config.beam, layout.completions))
    found, rows = {}, torch.arange(len(prompts), device=prompts.tokens.device)
    if "raw" in kinds:
        found["raw"], _ = find(prompts, places, noise=noise, behind=behind)
        found["excluded"] = exclude_history(found["raw"], prompts.history)
        rows = rows[~found["excluded"].certified(count)]
    if "excluded" in kinds and rows.numel():
        asked, own = replace(prompts, deny=denied).rows(rows), None if noise is None else noise[rows]
        again, _ = find(asked, places, noise=own, behind=[text.rows(rows) for text in behind])
        again = exclude_history(again, asked.history)
        found["excluded"] = found["excluded"].put(rows, again) if "raw" in kinds else again
    return {kind: found[kind] for kind in kinds}


def slates(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    width: int,
    config: EvaluateConfig,
    sampling: Sampling = RANKING,
) -> Ranking:
    """The slate of each request as its ranking: items in the order of their places, with the slate's log-probability.

    With `evaluate.slates: items` each place has the best item given those before; with `whole` it is the likeliest
    slate that beams over whole slates find. Either list is as long as a slate at most, and nothing bounds what is not
    on it.
    """
    item_by_item = config.slates == "items"
    found, _ = search(policy, layout, requests, width, sampling, beams=config.beam, settle=item_by_item)
    return replace(found, bound=None)


def _cut(ranking: Ranking, places: int) -> Ranking:
    """The first places; the bound covers what is cut off."""
    items, scores, bound = ranking.items, ranking.scores, ranking.bound
    if bound is not None and scores.shape[1] > places:
        bound = torch.maximum(bound, scores[:, places])
    return Ranking(items[:, :places], scores[:, :places], bound)


def thinking_noise(layout: Layout, prompts: Requests, config: EvaluateConfig) -> Tensor | None:
    """Noise [P, samples, longest completion] in [0, 1) that thinking is drawn with; None for the likeliest words.

    The seed of a prompt is a number made of its tokens, so its noise depends neither on the batch that it is in nor on
    the number of processes, and `recommend` thinks as `evaluate` did.
    """
    if config.thinking_samples == 0 or not layout.writes_text:
        return None
    return noise_of(prompts, (config.thinking_samples, layout.length))


def noise_of(prompts: Requests, shape: tuple[int, int], *purpose: int) -> Tensor:
    """Numbers [P, *shape] in [0, 1), of each prompt by a seed that is made of its tokens and of what they are for."""
    rows = zip(prompts.tokens.cpu(), prompts.mask.cpu(), strict=True)
    seeds = [seed_of(*row[real].tolist(), *purpose) for row, real in rows]
    noise = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return sent(torch.stack(noise), prompts.tokens.device)
