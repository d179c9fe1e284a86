"""Log-probabilities of completions, with the prompt computed once for its whole group."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrl.batches import Completions, Requests, Scores
from genrl.errors import DataError
from genrl.layouts.base import Layout, Legal, ThinkingLayout
from genrl.policy.branches import alone
from genrl.policy.branching import Shape, choose
from genrl.policy.cache import SharedLayer, model_cache
from genrl.policy.model import Head, Policy
from genrl.policy.tree import branch_mask, left_padded, prompt_positions

NORMALIZE = ("legal", "vocab", "catalogue")


def distribution(
    head: Head, hidden: Tensor, legal: Legal, temperature: float, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the next token over its legal set.

    Args:
        head: `Policy.head_for(normalize)`.
        hidden: [..., H] hidden states.
        legal: the legal sets, [..., columns].
        temperature: divides the logits.
        normalize: `legal`: probabilities sum to one over the legal set; `vocab`: over the whole vocabulary, as in
            published code that masks only its sampler; `catalogue`: over what would be legal without a filter of items,
            so that a filter leaves the scores of the items that pass as they are.

    Returns:
        log_probs [..., columns] with -inf where illegal, over what `normalize` says; sampling_log_probs, the same but
        always over the legal set; entropy [...] in nats over the legal set.
    """
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize={normalize!r} is none of {', '.join(NORMALIZE)}")
    illegal, columns = ~legal.mask, legal.mask.shape[-1]
    if normalize == "vocab":
        everything = head.logits(hidden, 0, len(head.weight)) / temperature
        logits = everything[..., legal.first : legal.first + columns]
    else:
        logits = head.logits(hidden, legal.first, columns) / temperature
    legal_log_probs = logits.masked_fill(illegal, float("-inf")).log_softmax(-1)
    entropy = -(legal_log_probs.exp() * legal_log_probs.masked_fill(illegal, 0.0)).sum(-1)
    if normalize == "catalogue" and legal.within is not None:
        everything = logits.masked_fill(~legal.within, float("-inf"))
    elif normalize != "vocab":
        return legal_log_probs, legal_log_probs, entropy
    log_probs = logits - everything.logsumexp(-1, keepdim=True)
    return log_probs.masked_fill(illegal, float("-inf")), legal_log_probs, entropy


def check_vocabulary(policy: Policy, layout: Layout) -> None:
    """Refuse a layout whose tokens are not those of the policy's tokenizer.

    Raises:
        DataError: naming both sets of tokens.
    """
    if (layout.first_ids, layout.sizes) != (policy.first_ids, policy.sizes):
        raise DataError(
            f"the trie writes SID levels of {list(layout.sizes)} codes at token ids {list(layout.first_ids)}, the "
            f"policy's tokenizer has levels of {list(policy.sizes)} codes at {list(policy.first_ids)}: the trie "
            f"belongs to another tokenizer. Build the layout with policy.first_ids, from the policy's own SID table."
        )


def score(
    policy: Policy,
    layout: Layout,
    requests: Requests,
    rollout: Completions,
    temperature: float = 1.0,
    normalize: str = "legal",
    thinking_temperature: float | None = None,
) -> Scores:
    """Log-probability and entropy of every token of a rollout under the current policy, with gradient.

    The prompt is computed once for its G completions (see `genrl.policy.branching` for how). Each token's distribution
    is rebuilt from its `support`, which is what it was sampled from.
    """
    check_vocabulary(policy, layout)
    if isinstance(layout, ThinkingLayout):
        return _score_thinking(policy, layout, requests, rollout, temperature, normalize, thinking_temperature)
    assert rollout.support is not None
    first, inner = completion_states(policy, requests, rollout.tokens, rollout.chosen)
    share = len(rollout.tokens) // len(first)  # completions that start from one hidden state and one legal set
    head = policy.head_for(normalize)
    legal = layout.legal(0, rollout.support[::share, 0])
    log_probs, _, entropy = distribution(head, first, legal, temperature, normalize)
    logps = [_chosen(log_probs.repeat_interleave(share, dim=0), rollout.tokens[:, :1], legal)]
    entropies = [entropy.repeat_interleave(share, dim=0)[:, None]]
    for start, legal in _runs(layout, rollout.support):
        stop = start + legal.mask.shape[1]
        log_probs, _, entropy = distribution(head, inner[:, start - 1 : stop - 1], legal, temperature, normalize)
        logps.append(_chosen(log_probs, rollout.tokens[:, start:stop], legal))
        entropies.append(entropy)
    mask = rollout.chosen
    return Scores(
        logps=torch.cat(logps, dim=1).masked_fill(~mask, 0.0),
        entropy=torch.cat(entropies, dim=1).masked_fill(~mask, 0.0),
    )


def _score_thinking(
    policy: Policy,
    layout: ThinkingLayout,
    requests: Requests,
    rollout: Completions,
    temperature: float,
    normalize: str,
    thinking_temperature: float | None,
) -> Scores:
    """`score` for completions of different lengths, of which only the tokens that were chosen need the output head."""
    assert rollout.support is not None
    width = rollout.tokens.shape[1]
    places = rollout.chosen.nonzero()
    length = int(places[:, 1].max()) + 1 if len(places) else 1
    first, inner = completion_states(policy, requests, rollout.tokens[:, :length], rollout.chosen[:, :length])
    before = torch.cat([first.repeat_interleave(len(rollout.tokens) // len(first), dim=0)[:, None], inner], dim=1)
    rows, columns = places.unbind(1)
    logps, entropy = place_scores(
        policy.head_for("vocab"),
        layout,
        before[rows, columns],
        rollout.support[rows, columns],
        rollout.tokens[rows, columns],
        temperature=temperature,
        thinking_temperature=thinking_temperature,
        normalize=normalize,
    )
    empty = logps.new_zeros(len(rollout.tokens), width)
    return Scores(logps=empty.index_put((rows, columns), logps), entropy=empty.index_put((rows, columns), entropy))


def place_scores(
    head: Head,
    layout: ThinkingLayout,
    hidden: Tensor,
    states: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    thinking_temperature: float | None = None,
    normalize: str = "legal",
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] and entropies [n] of chosen tokens at any sites, with gradient.

    Logits of words are as wide as the vocabulary, so many of them are computed in parts, each again in the backward
    pass: memory stays that of one part.

    Args:
        head: the whole output head.
        layout: grammar of the completions.
        hidden: [n, H] what each token is predicted from.
        states: [n] states before the tokens, none at a forced place.
        tokens: [n].
        temperature: divides the logits of SID tokens.
        thinking_temperature: divides the logits of words; None: as `temperature`.
        normalize: see `distribution`.
    """
    sites = layout.sites(states)
    words = temperature if thinking_temperature is None else thinking_temperature
    nothing = hidden[:0, 0].float()  # keeps the gradient's path where no token was chosen
    order, logps, entropies = [], [nothing], [nothing]
    for site in sites.unique().tolist():
        warmth = temperature if site < layout.num_steps else words

        def part(
            hidden: Tensor, states: Tensor, tokens: Tensor, site: int = site, warmth: float = warmth
        ) -> tuple[Tensor, Tensor]:
            legal = layout.legal(site, states)
            log_probs, _, entropy = distribution(head, hidden, legal, warmth, normalize)
            return _chosen(log_probs, tokens[:, None], legal)[:, 0], entropy

        rows = (sites == site).nonzero()[:, 0]
        order.append(rows)
        width = len(head.weight) if normalize == "vocab" else layout.legal(site, states[rows[:1]]).mask.shape[1]
        parts = rows.split(max(1, LOGITS // width))
        for each in parts:
            inputs = (hidden[each], states[each], tokens[each])
            one, two = part(*inputs) if len(parts) == 1 else checkpoint(part, *inputs, use_reentrant=False)
            logps.append(one)
            entropies.append(two)
    back = torch.cat([states.new_zeros(0), *order]).argsort()
    return torch.cat(logps)[back], torch.cat(entropies)[back]


LOGITS = 2**24
"""Logits that are held at a time; with 151,936 tokens a part has 110 places."""


def _runs(layout: Layout, support: Tensor) -> Iterator[tuple[int, Legal]]:
    """Legal sets of the places behind the first, those of neighbours with the same tokens together.

    Yields:
        The first place of a run and its legal sets, masks [B, n, columns].
    """
    start = 1
    run: list[Legal] = []
    for place in range(1, support.shape[1] + 1):
        legal = layout.legal(place, support[:, place]) if place < support.shape[1] else None
        if run and (legal is None or _columns(legal) != _columns(run[0])):
            within = [each.within for each in run if each.within is not None]
            masks = torch.stack([each.mask for each in run], dim=1)
            yield start, Legal(run[0].first, masks, torch.stack(within, dim=1) if within else None)
            start, run = place, []
        if legal is not None:
            run.append(legal)


def _columns(legal: Legal) -> tuple[int, int]:
    return legal.first, legal.mask.shape[1]


def _chosen(log_probs: Tensor, tokens: Tensor, legal: Legal) -> Tensor:
    """Log-probabilities of tokens [B, n] among [B, n, columns] or, for n = 1, [B, columns].

    A token outside the legal range is impossible; places outside the rollout's mask (padding behind a short
    completion) may hold one, and their value is not used.
    """
    columns = tokens - legal.first
    inside = (columns >= 0) & (columns < log_probs.shape[-1])
    chosen = log_probs.view(*tokens.shape, -1).gather(2, torch.where(inside, columns, 0)[:, :, None])[:, :, 0]
    return chosen.masked_fill(~inside, float("-inf"))


def completion_states(policy: Policy, requests: Requests, written: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states before the tokens of completions, with gradient.

    Args:
        policy: the model.
        requests: P prompts.
        written: completions [B, T], B a multiple of P.
        chosen: [B, T] tokens whose hidden states are wanted.

    Returns:
        those before each first token, [P, H] where a group shares them, else [B, H]; those before all later ones,
        [B, T - 1, H].
    """
    prompts, group, depth = len(requests), len(written) // len(requests), written.shape[1] - 1
    tokens, mask = left_padded(requests.tokens, requests.mask)
    context = tokens.shape[1]
    behind = written[:, :depth]
    way = choose(policy, Shape(prompts, group, context, depth), decode=False)
    if way == "naive":
        rows, real, positions = alone(tokens, mask, behind.view(prompts, group, depth))
        hidden = policy.hidden(rows, real, positions)
        return hidden[:, context - 1], hidden[:, context:]
    if way == "tree":
        return _tree_states(policy, tokens, mask, behind.view(prompts, group, depth), _needed(chosen, prompts))
    cache = model_cache(policy.base.config, SharedLayer)
    first = policy.hidden(tokens, mask, prompt_positions(mask), cache)[:, -1]
    if depth == 0:
        return first, first.new_empty(prompts * group, 0, first.shape[-1])
    cache.batch_repeat_interleave(group)
    real = torch.cat([mask.repeat_interleave(group, dim=0), mask.new_ones(prompts * group, depth)], dim=1)
    return first, policy.hidden(behind, real, prompt_positions(real)[:, context:], cache)


def _needed(chosen: Tensor, prompts: int) -> Tensor:
    """Tokens [P, G * (T - 1)] that a token chosen by the policy stands behind; the others need no hidden state."""
    later = chosen[:, 1:].flip(1).cumsum(1).flip(1) > 0
    return later.view(prompts, -1)


def _tree_states(policy: Policy, tokens: Tensor, mask: Tensor, behind: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of prompts with the needed tokens of all their completions in one row.

    Args:
        policy: the model.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        behind: completions [P, G, D].
        needed: [P, G * D] bool: tokens to compute, each with all before it in its completion.

    Returns:
        Hidden states behind the prompts [P, H] and behind the tokens [P * G, D, H], of no use where not needed.
    """
    prompts, group, depth = behind.shape
    context = tokens.shape[1]
    count = int(needed.sum(1).max()) if depth else 0
    order = (~needed).byte().argsort(dim=1, stable=True)[:, :count]
    branch, place = order // max(1, depth), order % max(1, depth)
    row = torch.cat([tokens, behind.flatten(1).gather(1, order)], dim=1)
    hidden = policy.hidden(
        row, branch_mask(mask, branch, place), torch.cat([prompt_positions(mask), mask.sum(1, keepdim=True) + place], 1)
    )
    whole = hidden.new_zeros(prompts, group * depth, hidden.shape[-1])
    inner = whole.scatter(1, order[:, :, None].expand(-1, -1, hidden.shape[-1]), hidden[:, context:])
    return hidden[:, context - 1], inner.view(prompts * group, depth, hidden.shape[-1])


def item_loss(head: Head, hidden: Tensor, layout: Layout, items: Tensor, normalize: str = "legal") -> Tensor:
    """Negative log-likelihood of whole items, summed over items and tokens, in nats.

    Args:
        head: output head of the model.
        hidden: [n, T, H]; place t is what token t is predicted from.
        layout: grammar of the completions.
        items: catalogue rows [n].
        normalize: see `distribution`.
    """
    tokens, states = layout.render(items), layout.start(len(items))
    total = hidden.new_zeros((), dtype=torch.float32)
    for position in range(layout.length):
        legal = layout.legal(position, states)
        log_probs, _, _ = distribution(head, hidden[:, position], legal, 1.0, normalize)
        drawn = tokens[:, position]
        total = total - log_probs.gather(1, (drawn - legal.first)[:, None]).sum()
        states = layout.advance(position, states, drawn)
    return total
