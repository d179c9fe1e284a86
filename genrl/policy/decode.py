"""Sampling and beam search under a layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.batches import Ranking
from genrl.errors import ConfigError
from genrl.layouts.base import Layout
from genrl.policy.branches import grow
from genrl.policy.model import Policy
from genrl.policy.score import check_vocabulary, distribution


@dataclass
class Drawn:
    """W completions per prompt as they were drawn."""

    tokens: Tensor
    """[P, W, T] int64."""
    support: Tensor
    """[P, W, T] int64 states before each token."""
    logps: Tensor
    """[P, W, T] float32 log-probabilities of the tokens."""
    entropy: Tensor
    """[P, W, T] float32 entropy of the legal distribution each token came from, nats."""
    choices: Tensor
    """[P, W, T] int64: number of legal tokens at each place; 1 is a forced token."""
    leaves: Tensor
    """[P, W] int64 final states; -1 where fewer than W completions exist."""
    scores: Tensor
    """[P, W] float32: sum of log-probabilities (beam, sample) or perturbed log-probability (gumbel)."""
    bound: Tensor
    """[P] float32: no completion that the search left out scores higher (beam, gumbel). A completion never scores above
    its beginnings, so this is the score of the best beginning that was given up. For samples, which leave out what
    they do not know of, it is +inf."""


@torch.no_grad()
def sample(
    policy: Policy,
    layout: Layout,
    tokens: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    normalize: str = "legal",
) -> Drawn:
    """Draw independent completions by inverting the distribution function at given uniform numbers.

    The noise is an argument, so the same prompt gets the same completions on one process or many.

    Args:
        policy: the sampling policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        uniforms: [P, G, T] numbers in [0, 1), one per token.
        temperature: divides the logits.
        normalize: see `genrl.policy.score.distribution`.
    """
    prompts, group, length = uniforms.shape
    check_vocabulary(policy, layout)
    branches = grow(policy, tokens, mask, group, length - 1)
    head = policy.head_for(normalize)
    hidden = branches.prefill()[:, None].expand(-1, group, -1)
    states = layout.start(prompts * group)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "support", "logps", "entropy", "choices")}
    for position in range(length):
        legal = layout.legal(position, states)
        log_probs, sampling, entropy = distribution(
            head, hidden.reshape(prompts * group, -1), legal, temperature, normalize
        )
        columns = invert(sampling.exp(), uniforms[:, :, position].reshape(-1, 1))
        drawn = columns[:, 0] + legal.first
        parts["tokens"].append(drawn)
        parts["support"].append(states)
        parts["logps"].append(log_probs.gather(1, columns)[:, 0])
        parts["entropy"].append(entropy)
        parts["choices"].append(legal.mask.sum(1))
        states = layout.advance(position, states, drawn)
        if position + 1 < length:
            live = live_slots(layout, position + 1, states, normalize)
            hidden = branches.extend(
                drawn.view(prompts, group), live=None if live is None else live.view(prompts, group)
            )
    stacked = {name: torch.stack(values, dim=1).view(prompts, group, length) for name, values in parts.items()}
    unknown = torch.full((prompts,), float("inf"), device=tokens.device)
    return Drawn(**stacked, leaves=states.view(prompts, group), scores=stacked["logps"].sum(2), bound=unknown)


def live_slots(layout: Layout, position: int, states: Tensor, normalize: str) -> Tensor | None:
    """Slots [...] that need the model once more; None is all.

    A token that is the only legal one has probability 1 whatever the model says, unless probabilities are taken over
    the vocabulary.
    """
    return None if normalize == "vocab" else ~layout.settled(position, states)


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse of the distribution function: [n, C] and [n, 1] -> columns [n, 1]; never a column of probability 0."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding could lift u * total to the total itself
    columns = torch.searchsorted(cumulative, torch.minimum(uniforms * total, below), right=True)
    return columns.clamp_(max=probabilities.shape[-1] - 1)  # only where the policy is not a number, which callers check


@torch.no_grad()
def beam(
    policy: Policy,
    layout: Layout,
    tokens: Tensor,
    mask: Tensor,
    width: int,
    *,
    temperature: float = 1.0,
    normalize: str = "legal",
    gumbels: Tensor | None = None,
) -> Drawn:
    """The `width` most likely completions found by beam search, best first.

    With `gumbels` the search is Stochastic Beam Search (Kool, van Hoof and Welling 2019, arXiv:1903.06059):
    log-probabilities are perturbed top-down with Gumbel noise conditioned on the parent's maximum, which draws
    `width` distinct completions without replacement in one pass.

    Args:
        policy: the policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        width: completions kept per prompt. Where a prompt has fewer, its last places are -1 with score -inf; there are
            no more places than the legal sets have codes.
        temperature: divides the logits.
        normalize: see `genrl.policy.score.distribution`.
        gumbels: [P, T, width, codes] standard Gumbel noise, codes at least those of the largest level.
    """
    prompts = tokens.shape[0]
    rows = torch.arange(prompts, device=tokens.device)[:, None]
    check_vocabulary(policy, layout)
    branches = grow(policy, tokens, mask, width, layout.length - 1)
    head = policy.head_for(normalize)
    hidden = branches.prefill()[:, None]
    states = layout.start(prompts)[:, None]
    totals = torch.zeros(prompts, 1, device=tokens.device)
    keys = torch.zeros(prompts, 1, device=tokens.device)
    bound = torch.full((prompts,), float("-inf"), device=tokens.device)
    parts: dict[str, Tensor] = {}
    for position in range(layout.length):
        slots = states.shape[1]
        legal = layout.legal(position, states.clamp(min=0).reshape(-1))
        log_probs, _, entropy = distribution(head, hidden.reshape(prompts * slots, -1), legal, temperature, normalize)
        codes = log_probs.shape[1]
        log_probs = log_probs.view(prompts, slots, codes).masked_fill((states < 0)[:, :, None], float("-inf"))
        reached = totals[:, :, None] + log_probs
        ranked = reached if gumbels is None else _perturb(reached, keys, gumbels[:, position, :slots, :codes])
        keep = min(width, slots * codes)
        best, flat = ranked.reshape(prompts, -1).topk(min(keep + 1, slots * codes), dim=1)
        if best.shape[1] > keep:
            bound = torch.maximum(bound, best[:, keep])
        keys, flat = best[:, :keep], flat[:, :keep]
        parents, columns = flat // codes, flat % codes
        exists = keys > float("-inf")
        drawn = columns + legal.first
        new = {
            "tokens": drawn,
            "support": states[rows, parents].clamp(min=0),
            "logps": log_probs[rows, parents, columns],
            "entropy": entropy.view(prompts, slots)[rows, parents],
            "choices": legal.mask.sum(1).view(prompts, slots)[rows, parents],
        }
        parts = {
            name: torch.cat([parts[name][rows, parents], value[:, :, None]], dim=2) if parts else value[:, :, None]
            for name, value in new.items()
        }
        totals = reached[rows, parents, columns]
        states = layout.advance(position, new["support"].reshape(-1), drawn.reshape(-1)).view(prompts, keep)
        if position + 1 < layout.length:
            live = live_slots(layout, position + 1, states.clamp(min=0), normalize)
            hidden = branches.extend(drawn, parents, None if live is None else live & exists)
        states = torch.where(exists, states, -1)
    return Drawn(**parts, leaves=states, scores=keys, bound=bound)


def _perturb(reached: Tensor, keys: Tensor, gumbels: Tensor) -> Tensor:
    """Perturbed log-probabilities of children whose maximum is the parent's (Kool et al. 2019, equation 25).

    Args:
        reached: [P, W, C] log-probability of each child, -inf where illegal.
        keys: [P, W] perturbed log-probability of the parents.
        gumbels: [P, W, C] standard Gumbel noise.
    """
    noisy = reached + gumbels
    largest = noisy.amax(-1, keepdim=True)
    gap = keys[:, :, None] - noisy + torch.log1p(-torch.exp((noisy - largest).clamp(max=0)))
    conditioned = keys[:, :, None] - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    conditioned = torch.where(noisy == largest, keys[:, :, None], conditioned)
    return torch.where(reached == float("-inf"), reached, conditioned)


@torch.no_grad()
def rank(policy: Policy, layout: Layout, tokens: Tensor, mask: Tensor, width: int, *, exact: int = 0) -> Ranking:
    """The layout's items by constrained beam search, best first, with a bound for those that are not listed.

    A filter of items (`Layout.only`, `Layout.filtered`) takes items out of the ranking and leaves the scores of the
    others as they are in the whole catalogue.

    Args:
        policy: the policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        width: places of the ranking and width of the beam.
        exact: make the beam wider for the prompts that need it, until this many first items are certified to be the
            best of the whole catalogue or the beam has `WIDEST` places; 0 takes what the beam finds.

    Raises:
        ConfigError: if more items shall be exact than there are places.
    """
    if exact > width:
        raise ConfigError(f"the first {exact} of {width} places cannot be exact. Make the beam {exact} wide or wider.")
    ranking = _search(policy, layout, tokens, mask, width, width)
    beams = width
    widest = min(layout.completions, max(WIDEST, width))
    while exact and beams < widest:
        unsure = (~ranking.certified(exact)).nonzero()[:, 0]
        if unsure.numel() == 0:
            break
        beams = min(WIDEN * beams, widest)
        for rows in unsure.split(max(1, len(tokens) * width // beams)):
            found = _search(policy, layout.requests(rows), tokens[rows], mask[rows], beams, width)
            ranking = ranking.replaced(rows, found)
    return ranking


WIDEN = 4
"""How many times wider each further beam of an exact ranking is."""
WIDEST = 16384
"""Places of the widest beam of an exact ranking; memory grows with it. Rankings that need more stay uncertified."""


def _search(policy: Policy, layout: Layout, tokens: Tensor, mask: Tensor, beams: int, width: int) -> Ranking:
    """The first `width` items of a beam search; the bound covers what the search gave up and what is cut off here."""
    found = beam(policy, layout, tokens, mask, beams, normalize="catalogue")
    items, scores = layout.rank(found.leaves, found.scores, width + 1)
    return Ranking(items[:, :width], scores[:, :width], torch.maximum(found.bound, scores[:, width]))
