"""Log-probabilities of completions, with the prompt computed once for its whole group."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genrl.batches import Completions, Requests, Scores, State
from genrl.layouts.base import Layout, Legal
from genrl.ops import sent
from genrl.policy.distribution import LOGITS, Sampling, check_tokens, distribution, head_rows, log_prob
from genrl.policy.guide import Masses
from genrl.policy.protocol import Generative, Next
from genrl.policy.write import by_site


def score(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    completions: Completions,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Scores:
    """Log-probability and entropy of every chosen token under the current policy, with gradient.

    The prompt is computed once for its G completions (see `genrl.policy.share` for how). Each token's distribution
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
        places = completions.chosen.any(0).cpu().nonzero()
        length = int(places.max()) + 1 if len(places) else 1
    written, chosen = completions.tokens[:, :length], completions.chosen[:, :length]
    return policy.follow(requests, written, chosen, read, head_rows(layout, sampling.normalize))


def _apart(
    layout: Layout,
    requests: Requests,
    completions: Completions,
    states: State,
    sampling: Sampling,
    first: Next,
    inner: Next,
) -> Scores:
    """Scores where each completion has its sites in columns of its own."""
    tokens, chosen = completions.tokens, completions.chosen
    share = len(tokens) // len(first)
    logps = entropy = torch.zeros_like(tokens, dtype=torch.float32)
    places = chosen.cpu().nonzero()  # the host looks once
    for said, opens in ((first, True), (inner, False)):
        rows, columns = sent(places[(places[:, 1] == 0) == opens], chosen.device).unbind(1)
        here = said[rows // share] if opens else said[rows, columns - 1]
        own = states.each(lambda value, at=(rows, columns): value[at])  # type: ignore[misc]
        found = place_scores(here, layout, own, tokens[rows, columns], sampling, requests)
        pairs = zip((logps, entropy), found, strict=True)
        logps, entropy = (whole.to(part.dtype).index_put((rows, columns), part) for whole, part in pairs)
    return Scores(logps=logps, entropy=entropy)


def _in_step(
    layout: Layout,
    requests: Requests,
    completions: Completions,
    states: State,
    sampling: Sampling,
    first: Next,
    inner: Next,
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
            logps.append(torch.zeros_like(mask[:, start:stop], dtype=torch.float32))
            entropies.append(logps[-1])
            continue
        said = inner[:, start - 1 : stop - 1] if start else first
        log_probs, _, entropy = distribution(said, legal, sampling.at(layout, start), normalize)
        if start == 0:
            log_probs, entropy = log_probs.repeat_interleave(share, 0), entropy.repeat_interleave(share, 0)[:, None]
        logps.append(_chosen(log_probs, tokens[:, start:stop], legal, share if start == 0 else 1))
        entropies.append(entropy)
    return Scores(
        logps=torch.cat(logps, dim=1).masked_fill(~mask, 0.0),
        entropy=torch.cat(entropies, dim=1).masked_fill(~mask, 0.0),
    )


def place_scores(
    said: Next,
    layout: Layout,
    states: State,
    tokens: Tensor,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    requests: Requests | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] and entropies [n] of chosen tokens at any sites, with gradient.

    Logits of words are as wide as the vocabulary, so many of them are computed in parts, each again in the backward
    pass: memory stays that of one part.

    Args:
        said: what the policy says before each of the n tokens.
        layout: grammar of the completions.
        states: [n] states before the tokens, none at a place of the form.
        tokens: [n].
        sampling: temperatures and what probabilities sum to one over.
        requests: whose items are legal.
    """
    none = Legal(torch.ones_like(tokens[:0, None], dtype=torch.bool), said.first)
    nothing = said[:0].logits(none)[:, 0]  # keeps the gradient's path where no token was chosen
    order, logps, entropies = [], [nothing], [nothing]
    for site, rows in by_site(states.site):

        def part(rows: Tensor, site: int = site) -> tuple[Tensor, Tensor]:
            legal = layout.legal(site, states.rows(rows), requests)
            log_probs, _, entropy = distribution(said[rows], legal, sampling.at(layout, site), sampling.normalize)
            return log_prob(log_probs, legal, tokens[rows]), entropy

        order.append(rows)
        width = layout.legal(site, states.rows(rows[:1]), requests).mask.shape[1]
        if sampling.normalize == "vocab" or layout.in_words:
            width = said[:0].logits(None).shape[-1]
        parts = rows.split(max(1, LOGITS // width))
        for each in parts:
            one, two = part(each) if len(parts) == 1 else checkpoint(part, each, use_reentrant=False)
            logps.append(one)
            entropies.append(two)
    back = torch.cat([tokens.new_zeros(0), *order]).argsort()
    return torch.cat(logps)[back], torch.cat(entropies)[back]


def item_loss(
    said: Next,
    layout: Layout,
    items: Tensor,
    normalize: str = "legal",
    teacher: Masses | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of whole completions without text, summed over completions and tokens, in nats.

    With a teacher p it is the cross-entropy to (1 - share) of the target and share of p(. | the target's codes before).

    Args:
        said: what the policy says before each token, [n, T].
        layout: grammar of the completions, which keep in step.
        items: catalogue rows [n, N].
        normalize: see `Sampling.normalize`.
        teacher: what it says behind the n histories; None: the targets count alone.
        shares: [n] of the teacher, in [0, 1].
    """
    tokens, state = layout.compose(items), layout.start(len(items))
    total = torch.zeros((), device=tokens.device)
    for position, drawn in enumerate(tokens.unbind(1)):
        legal = layout.legal(position, state)
        if not legal.form:
            log_probs, _, _ = distribution(said[:, position], legal, 1.0, normalize)
            likelihoods = log_prob(log_probs, legal, drawn)
            if teacher is not None and shares is not None:
                wanted = teacher.behind(legal, state.owner).softmax(-1)
                soft = (wanted * log_probs.masked_fill(~legal.mask, 0.0)).sum(-1)
                likelihoods = likelihoods + shares * (soft - likelihoods)
            total = total - likelihoods.sum()
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
    child = [each.child for each in run if each.child is not None]
    whole = [each.whole for each in run if each.whole is not None]
    return Legal(
        torch.stack([each.mask for each in run], dim=1),
        run[0].first,
        torch.stack(tokens, dim=1) if tokens else None,
        torch.stack(within, dim=1) if within else None,
        torch.stack(child, dim=1) if child else None,
        run[0].level,
        torch.stack(whole, dim=1) if whole else None,
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
