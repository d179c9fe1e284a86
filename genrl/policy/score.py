"""Log-probabilities of completions, with the prompt computed once for its whole group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrl.batches import Completions, Requests, Scores, State
from genrl.layouts.base import Layout, Legal
from genrl.policy.branches import alone
from genrl.policy.branching import Shape, choose
from genrl.policy.cache import SharedLayer, model_cache
from genrl.policy.distribution import Sampling, check_tokens, distribution, head_rows, log_prob
from genrl.policy.model import Head, Policy, states
from genrl.policy.tree import branch_mask, left_padded, prompt_positions
from genrl.policy.write import by_site

T = TypeVar("T")


def score(
    policy: Policy,
    layout: Layout,
    requests: Requests,
    completions: Completions,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Scores:
    """Log-probability and entropy of every chosen token under the current policy, with gradient.

    The prompt is computed once for its G completions (see `genrl.policy.branching` for how). Each token's distribution
    is rebuilt from the state before it, which names what it was drawn from.

    Args:
        policy: what is asked.
        layout: that the completions were written under.
        requests: P prompts.
        completions: G for each of them.
        sampling: that they were written with.
    """
    check_tokens(policy, layout)
    assert completions.states is not None
    owner = torch.arange(len(completions.tokens), device=completions.tokens.device) // completions.group_size
    before = replace(completions.states, owner=owner[:, None].expand_as(completions.tokens))
    read = partial(_in_step if layout.in_step else _apart, layout, requests, completions, before, sampling)
    length = completions.tokens.shape[1]
    if not layout.in_step:
        places = completions.chosen.any(0).nonzero()
        length = int(places.max()) + 1 if len(places) else 1
    written, chosen = completions.tokens[:, :length], completions.chosen[:, :length]
    return read_completions(policy, requests, written, chosen, read, head_rows(layout, sampling.normalize))


def _apart(
    layout: Layout,
    requests: Requests,
    completions: Completions,
    states: State,
    sampling: Sampling,
    first: Tensor,
    inner: Tensor,
    head: Head,
) -> Scores:
    """Scores where each completion has its sites in columns of its own."""
    tokens, chosen = completions.tokens, completions.chosen
    before = torch.cat([first.repeat_interleave(len(tokens) // len(first), dim=0)[:, None], inner], dim=1)
    at = chosen.nonzero(as_tuple=True)
    own = states.each(lambda value: value[at])
    logps, entropy = place_scores(head, layout, before[at], own, tokens[at], sampling, requests)
    empty = logps.new_zeros(tokens.shape)
    return Scores(logps=empty.index_put(at, logps), entropy=empty.index_put(at, entropy))


def _in_step(
    layout: Layout,
    requests: Requests,
    completions: Completions,
    states: State,
    sampling: Sampling,
    first: Tensor,
    inner: Tensor,
    head: Head,
) -> Scores:
    """Scores place by place: all completions have their tokens of a site in the same column."""
    tokens, mask = completions.tokens, completions.chosen
    share = len(tokens) // len(first)  # completions that start from one hidden state and one legal set
    normalize = sampling.normalize
    places = [(0, layout.legal(0, states.each(lambda value: value[::share, 0]), requests))]
    logps, entropies = [], []
    for start, legal in (*places, *_runs(layout, states, requests)):
        stop = start + (legal.mask.shape[1] if start else 1)
        if layout.kinds[start] == "form":
            logps.append(first.new_zeros(len(tokens), stop - start, dtype=torch.float32))
            entropies.append(logps[-1])
            continue
        before = inner[:, start - 1 : stop - 1] if start else first
        log_probs, _, entropy = distribution(head, before, legal, sampling.at(layout, start), normalize)
        if start == 0:
            log_probs, entropy = log_probs.repeat_interleave(share, 0), entropy.repeat_interleave(share, 0)[:, None]
        logps.append(_chosen(log_probs, tokens[:, start:stop], legal, share if start == 0 else 1))
        entropies.append(entropy)
    return Scores(
        logps=torch.cat(logps, dim=1).masked_fill(~mask, 0.0),
        entropy=torch.cat(entropies, dim=1).masked_fill(~mask, 0.0),
    )


def place_scores(
    head: Head,
    layout: Layout,
    hidden: Tensor,
    states: State,
    tokens: Tensor,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    requests: Requests | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] and entropies [n] of chosen tokens at any sites, with gradient.

    Logits of words are as wide as the vocabulary, so many of them are computed in parts, each again in the backward
    pass: memory stays that of one part.

    Args:
        head: the whole output head.
        layout: grammar of the completions.
        hidden: [n, H] what each token is predicted from.
        states: [n] states before the tokens, none at a place of the form.
        tokens: [n].
        sampling: temperatures and what probabilities sum to one over.
        requests: whose items are legal.
    """
    nothing = hidden[:0, 0].float()  # keeps the gradient's path where no token was chosen
    order, logps, entropies = [], [nothing], [nothing]
    for site, rows in by_site(states.site):

        def part(hidden: Tensor, tokens: Tensor, rows: Tensor, site: int = site) -> tuple[Tensor, Tensor]:
            legal = layout.legal(site, states.rows(rows), requests)
            log_probs, _, entropy = distribution(head, hidden, legal, sampling.at(layout, site), sampling.normalize)
            return log_prob(log_probs, legal, tokens), entropy

        order.append(rows)
        width = len(head.weight)
        if sampling.normalize != "vocab":
            width = layout.legal(site, states.rows(rows[:1]), requests).mask.shape[1]
        parts = rows.split(max(1, LOGITS // width))
        for each in parts:
            inputs = (hidden[each], tokens[each], each)
            one, two = part(*inputs) if len(parts) == 1 else checkpoint(part, *inputs, use_reentrant=False)
            logps.append(one)
            entropies.append(two)
    back = torch.cat([tokens.new_zeros(0), *order]).argsort()
    return torch.cat(logps)[back], torch.cat(entropies)[back]


LOGITS = 2**24
"""Logits that are held at a time; with 151,936 tokens a part has 110 places."""


def item_loss(head: Head, hidden: Tensor, layout: Layout, items: Tensor, normalize: str = "legal") -> Tensor:
    """Negative log-likelihood of whole completions without text, summed over completions and tokens, in nats.

    Args:
        head: output head of the model.
        hidden: [n, T, H]; place t is what token t is predicted from.
        layout: grammar of the completions, which keep in step.
        items: catalogue rows [n, N].
        normalize: see `Sampling.normalize`.
    """
    tokens, state = layout.compose(items), layout.start(len(items))
    total = hidden.new_zeros((), dtype=torch.float32)
    for position, drawn in enumerate(tokens.unbind(1)):
        legal = layout.legal(position, state)
        if not legal.form:
            log_probs, _, _ = distribution(head, hidden[:, position], legal, 1.0, normalize)
            total = total - log_prob(log_probs, legal, drawn).sum()
        state = layout.advance(state, drawn, position)
    return total


def _runs(layout: Layout, states: State, requests: Requests) -> Iterator[tuple[int, Legal]]:
    """Legal sets of the places behind the first, those of neighbours with the same tokens together.

    Yields:
        The first place of a run and its legal sets, masks [B, n, columns].
    """
    start = 1
    run: list[Legal] = []
    length = states.site.shape[1]
    for place in range(1, length + 1):
        legal = None
        if place < length:
            legal = layout.legal(place, states.each(lambda value, at=place: value[:, at]), requests)  # type: ignore[misc]
        if run and (legal is None or _columns(legal) != _columns(run[0])):
            yield start, _together(run)
            run = []
        if legal is not None:
            start = start if run else place
            run.append(legal)


def _together(run: list[Legal]) -> Legal:
    within = [each.within for each in run if each.within is not None]
    tokens = [each.tokens for each in run if each.tokens is not None]
    return Legal(
        torch.stack([each.mask for each in run], dim=1),
        run[0].first,
        torch.stack(tokens, dim=1) if tokens else None,
        torch.stack(within, dim=1) if within else None,
    )


def _columns(legal: Legal) -> tuple[int, int, bool]:
    return legal.first, legal.mask.shape[1], legal.tokens is None


def _chosen(log_probs: Tensor, tokens: Tensor, legal: Legal, share: int) -> Tensor:
    """Log-probabilities of tokens [B, n] among [B, n, columns] or, for n = 1, [B, columns].

    A token outside the legal range is impossible; places outside `Completions.chosen` may hold one, and their value is
    not used.
    """
    log_probs = log_probs.view(*tokens.shape, -1)
    if legal.tokens is None:
        columns = tokens - legal.first
        inside = (columns >= 0) & (columns < log_probs.shape[-1])
    else:
        same = legal.tokens.repeat_interleave(share, 0).view(*tokens.shape, -1) == tokens[:, :, None]
        inside, columns = same.any(2), same.byte().argmax(2)
    return log_probs.gather(2, torch.where(inside, columns, 0)[:, :, None])[:, :, 0].masked_fill(~inside, float("-inf"))


def read_completions(
    policy: Policy,
    requests: Requests,
    written: Tensor,
    chosen: Tensor,
    read: Callable[[Tensor, Tensor, Head], T],
    rows: str = "legal",
) -> T:
    """Read hidden states before the tokens of completions, with gradient.

    Args:
        policy: the model.
        requests: P prompts.
        written: completions [B, T], B a multiple of P.
        chosen: [B, T] tokens whose hidden states are wanted.
        read: gets the hidden states before each first token, [P, H] where a group shares them, else [B, H]; those
            before all later ones, [B, T - 1, H]; and the head; see `Policy.forward`.
        rows: of the head, see `Policy.forward`.
    """
    prompts, group, depth = len(requests), len(written) // len(requests), written.shape[1] - 1
    tokens, mask = left_padded(requests.tokens, requests.mask)
    context = tokens.shape[1]
    behind = written[:, :depth]
    way = choose(policy, Shape(prompts, group, context, depth), decode=False)
    if way == "naive":
        inputs = alone(tokens, mask, behind.view(prompts, group, depth))
        return policy(*inputs, lambda hidden, head: read(hidden[:, context - 1], hidden[:, context:], head), rows)
    if way == "tree":
        inputs, spread = _tree(tokens, mask, behind.view(prompts, group, depth), _needed(chosen, prompts))
        return policy(*inputs, lambda hidden, head: read(*spread(hidden), head), rows)
    cache = model_cache(policy.base.config, SharedLayer)
    first = policy(tokens, mask, prompt_positions(mask), states, cache=cache)[:, -1]
    cache.batch_repeat_interleave(group)
    real = torch.cat([mask.repeat_interleave(group, dim=0), mask.new_ones(prompts * group, depth)], dim=1)
    return policy(
        behind, real, prompt_positions(real)[:, context:], lambda inner, head: read(first, inner, head), rows, cache
    )


def _needed(chosen: Tensor, prompts: int) -> Tensor:
    """Tokens [P, G * (T - 1)] that a token chosen by the policy stands behind; the others need no hidden state."""
    later = chosen[:, 1:].flip(1).cumsum(1).flip(1) > 0
    return later.view(prompts, -1)


def _tree(
    tokens: Tensor, mask: Tensor, behind: Tensor, needed: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Prompts with the needed tokens of all their completions in one row.

    Args:
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        behind: completions [P, G, D].
        needed: [P, G * D] bool: tokens to compute, each with all before it in its completion.

    Returns:
        Tokens, mask and positions of the pass; and a function that makes of its hidden states those behind the prompts
        [P, H] and behind the tokens [P * G, D, H], of no use where not needed.
    """
    prompts, group, depth = behind.shape
    context = tokens.shape[1]
    count = int(needed.sum(1).max()) if depth else 0
    order = (~needed).byte().argsort(dim=1, stable=True)[:, :count]
    branch, place = order // max(1, depth), order % max(1, depth)
    row = torch.cat([tokens, behind.flatten(1).gather(1, order)], dim=1)
    positions = torch.cat([prompt_positions(mask), mask.sum(1, keepdim=True) + place], 1)

    def spread(hidden: Tensor) -> tuple[Tensor, Tensor]:
        whole = hidden.new_zeros(prompts, group * depth, hidden.shape[-1])
        inner = whole.scatter(1, order[:, :, None].expand(-1, -1, hidden.shape[-1]), hidden[:, context:])
        return hidden[:, context - 1], inner.view(prompts * group, depth, hidden.shape[-1])

    return (row, branch_mask(mask, branch, place), positions), spread
