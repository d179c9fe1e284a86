"""Sampling and beam search under a layout: the prompt is prefilled once and every branch attends to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from genrl.layouts.base import Layout
from genrl.policy.model import Policy
from genrl.policy.score import distribution
from genrl.policy.tree import ancestry_mask, causal_mask, prompt_positions
from genrl.types import Ranking


@dataclass
class Completions:
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


@dataclass
class _Branches:
    """The tree behind cached prompts: W slots per level, each with a parent slot in the level before."""

    policy: Policy
    mask: Tensor
    cache: DynamicCache = field(default_factory=DynamicCache)
    widths: list[int] = field(default_factory=list)
    ancestors: list[Tensor] = field(default_factory=list)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Hidden state [P, H] behind each prompt."""
        return self.policy.hidden(tokens, causal_mask(self.mask), prompt_positions(self.mask), self.cache)[:, -1]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden states [P, W, H] behind one more token [P, W] per slot; `parents` [P, W]: slots of the last level."""
        prompts, width = tokens.shape
        slots = torch.arange(width, device=tokens.device).expand(prompts, -1)
        self.ancestors = [earlier.gather(1, parents) for earlier in self.ancestors] + [slots]
        self.widths.append(width)
        mask = ancestry_mask(self.mask, self.ancestors, self.widths)
        positions = (self.mask.sum(1, keepdim=True) + len(self.widths) - 1).expand(prompts, width)
        return self.policy.hidden(tokens, mask, positions, self.cache)


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
) -> Completions:
    """Draw independent completions by inverting the distribution function at given uniform numbers.

    The noise is an argument, so the same prompt gets the same completions on one process or many.

    Args:
        policy: the sampling policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        uniforms: [P, G, T] numbers in [0, 1), one per token.
        temperature: divides the logits.
        normalize: see `genrl.policy.score.distribution`.
    """
    prompts, group, length = uniforms.shape
    branches = _Branches(policy, mask)
    hidden = branches.prefill(tokens)[:, None].expand(-1, group, -1)
    states = layout.start(prompts * group)
    parents = torch.arange(group, device=tokens.device).expand(prompts, -1)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "support", "logps", "entropy", "choices")}
    for position in range(length):
        legal = layout.legal(position, states)
        log_probs, sampling, entropy = distribution(
            policy, hidden.reshape(prompts * group, -1), legal, temperature, normalize
        )
        columns = _invert(sampling.exp(), uniforms[:, :, position].reshape(-1, 1))
        drawn = columns[:, 0] + legal.first
        parts["tokens"].append(drawn)
        parts["support"].append(states)
        parts["logps"].append(log_probs.gather(1, columns)[:, 0])
        parts["entropy"].append(entropy)
        parts["choices"].append(legal.mask.sum(1))
        states = layout.advance(position, states, drawn)
        if position + 1 < length:
            hidden = branches.extend(drawn.view(prompts, group), parents)
    stacked = {name: torch.stack(values, dim=1).view(prompts, group, length) for name, values in parts.items()}
    return Completions(**stacked, leaves=states.view(prompts, group), scores=stacked["logps"].sum(2))


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
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
) -> Completions:
    """The `width` most likely completions found by beam search, best first.

    With `gumbels` the search is Stochastic Beam Search (Kool, van Hoof and Welling 2019, arXiv:1903.06059):
    log-probabilities are perturbed top-down with Gumbel noise conditioned on the parent's maximum, which draws
    `width` distinct completions without replacement in one pass.

    Args:
        policy: the policy.
        layout: grammar of the completions.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        width: completions kept per prompt; where fewer exist, the rest are -1 with score -inf.
        temperature: divides the logits.
        normalize: see `genrl.policy.score.distribution`.
        gumbels: [P, T, width, codes] standard Gumbel noise, codes at least those of the largest level.
    """
    prompts = tokens.shape[0]
    rows = torch.arange(prompts, device=tokens.device)[:, None]
    branches = _Branches(policy, mask)
    hidden = branches.prefill(tokens)[:, None]
    states = layout.start(prompts)[:, None]
    totals = torch.zeros(prompts, 1, device=tokens.device)
    keys = torch.zeros(prompts, 1, device=tokens.device)
    parts: dict[str, Tensor] = {}
    for position in range(layout.length):
        slots = states.shape[1]
        legal = layout.legal(position, states.clamp(min=0).reshape(-1))
        log_probs, _, entropy = distribution(policy, hidden.reshape(prompts * slots, -1), legal, temperature, normalize)
        codes = log_probs.shape[1]
        log_probs = log_probs.view(prompts, slots, codes).masked_fill((states < 0)[:, :, None], float("-inf"))
        reached = totals[:, :, None] + log_probs
        ranked = reached if gumbels is None else _perturb(reached, keys, gumbels[:, position, :slots, :codes])
        keep = min(width, slots * codes)
        keys, flat = ranked.reshape(prompts, -1).topk(keep, dim=1)
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
        states = torch.where(exists, states, -1)
        if position + 1 < layout.length:
            hidden = branches.extend(drawn, parents)
    return Completions(**parts, leaves=states, scores=keys)


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
def rank(policy: Policy, layout: Layout, tokens: Tensor, mask: Tensor, width: int) -> Ranking:
    """The catalogue's items by constrained beam search, best first."""
    found = beam(policy, layout, tokens, mask, width)
    items, scores = layout.rank(found.leaves, found.scores, width)
    return Ranking(items, scores)
