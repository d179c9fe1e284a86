"""The engine against itself: writing, searching and scoring are one distribution, whatever stands beside a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from genrl.batches import Completions, Requests, Scores, Targets, widened
from genrl.layouts.base import Layout
from genrl.policy.distribution import RANKING
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import targets_as_completions, write
from genrl.runs.session import Session
from genrl.selftest.world import GROUP, Found, World

FURTHER = 5
"""Places of padding that are added."""


def total_probability(world: World) -> Found:
    """Probabilities of all items of the catalogue, summed for each request, against 1."""
    session = world.sessions["sid"]
    found = every_item(session, world.requests(session))
    return largest([found.exp().sum(1) - 1])


def sampled_and_scored(world: World) -> Found:
    """Log-probabilities and entropies that were noted while sampling, against those of scoring, in every layout."""
    return largest(_apart(world))


def _apart(world: World) -> Iterator[Tensor]:
    for session, requests in world.parts():
        drawn = _drawn(session, requests)
        scores = _scored(session, requests, drawn)
        yield scores.logps - _as_wide(drawn.logps, scores.logps)
        if scores.entropy is not None and drawn.entropy is not None:
            yield scores.entropy - _as_wide(drawn.entropy, scores.entropy)


def searched_and_enumerated(world: World) -> Found:
    """Rankings of the whole catalogue by beam search, against the score of each item on its own."""
    session = world.sessions["sid"]
    requests = world.requests(session)
    scores = every_item(session, requests)
    width = scores.shape[1]
    ranking, _ = search(session.policy, _on(session, requests), requests, width, RANKING)
    ordered = scores.sort(dim=1, descending=True).values
    return largest([ranking.scores - ordered, ranking.scores - scores.gather(1, ranking.items)])


def padded(world: World) -> Found:
    """Scores of completions behind prompts with more padding, against those with less, in every layout."""
    found = []
    for session, requests in world.parts():
        drawn = _drawn(session, requests)
        width = requests.tokens.shape[1] + FURTHER
        longer = replace(
            requests,
            tokens=widened(requests.tokens, width, "left"),
            mask=widened(requests.mask, width, "left"),
        )
        found.append(_scored(session, longer, drawn).logps - _scored(session, requests, drawn).logps)
    return largest(found)


def reordered(world: World) -> Found:
    """Scores of requests in reverse order, against the same in their own, in every layout."""
    found = []
    for session, requests in world.parts():
        drawn = _drawn(session, requests)
        turned = torch.arange(len(requests) - 1, -1, -1, device=world.device)
        members = (turned[:, None] * GROUP + torch.arange(GROUP, device=world.device)).flatten()
        one = _scored(session, requests, drawn).logps[members]
        other = _scored(session, requests.rows(turned), drawn.groups(turned)).logps
        found.append(other - one)
    return largest(found)


def largest(differences: Iterable[Tensor]) -> Found:
    """The largest absolute difference, NaN if any is NaN, and how many there were."""
    flat = torch.cat([part.detach().double().flatten().cpu() for part in differences]).abs()
    return Found(float(flat.max()), flat.numel())


@torch.no_grad()
def every_item(session: Session, requests: Requests) -> Tensor:
    """Log-probability [P, I] of each item of the catalogue behind each of P requests."""
    layout, count = _on(session, requests), len(session.table.codes)
    items = torch.arange(count, device=requests.tokens.device).repeat(len(requests))[:, None]
    asked = replace(requests.repeat(count), targets=Targets(items))
    gold = targets_as_completions(layout, asked)
    return score(session.policy, layout, asked, gold, RANKING).logps.sum(1).view(len(requests), count)


def _drawn(session: Session, requests: Requests) -> Completions:
    layout = _on(session, requests)
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(len(requests), GROUP, layout.length, generator=generator).to(requests.tokens.device)
    return write(session.policy, layout, requests, GROUP, noise=noise)


@torch.no_grad()
def _scored(session: Session, requests: Requests, drawn: Completions) -> Scores:
    return score(session.policy, _on(session, requests), requests, drawn)


def _on(session: Session, requests: Requests) -> Layout:
    return session.layout.to(requests.tokens.device)


def _as_wide(values: Tensor, other: Tensor) -> Tensor:
    """The first columns of `values`: scores end with the last token that any completion chose."""
    return values[:, : other.shape[1]]
