"""Completions written token by token, whatever the layout; rows that need no more of the model leave it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from genrl.batches import Completions, Requests, State, stacked
from genrl.layouts.base import Layout
from genrl.ops import looks, sent
from genrl.policy.distribution import Sampling, check_tokens, distribution, head_rows, invert
from genrl.policy.protocol import Generative, Next


@dataclass(frozen=True)
class Written:
    """What n rows wrote, padded on the right to the longest of them."""

    tokens: Tensor
    """[n, T] int64, 0 behind the end."""
    states: State
    """Of [n, T]: before each token."""
    logps: Tensor
    """[n, T] float32 log-probabilities, 0 where nothing was chosen."""
    entropy: Tensor
    """[n, T] float32 entropy of the legal distribution each token came from, nats."""
    choices: Tensor
    """[n, T] int64: number of legal tokens; 1 is an item token without a choice, 0 a token of the form or padding."""
    state: State
    """Of [n]: behind the last token."""
    mask: Tensor
    """[n, T] bool: tokens, no padding."""


def write(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    group: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    noise: Tensor | None = None,
) -> Completions:
    """Draw independent completions by inverting the distribution function at given uniform numbers.

    The noise is an argument, so the same prompt gets the same completions on one process or many.

    Args:
        policy: what writes.
        layout: grammar of the completions.
        requests: P prompts, padded on any side.
        group: completions of each.
        sampling: temperatures and what probabilities sum to one over.
        noise: [P, group, layout.length] numbers in [0, 1), one per token; None: the likeliest token.
    """
    check_tokens(policy, layout)
    start = layout.start(len(requests), group)
    uniforms = None if noise is None else noise.flatten(0, 1)
    written = go_on(policy, layout, requests, requests, start, sampling, uniforms)
    return completed(
        layout,
        group,
        written.tokens,
        written.states,
        written.choices,
        written.logps,
        written.entropy,
        sampling,
        requests,
    )


@torch.no_grad()
def go_on(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    begun: Requests,
    state: State,
    sampling: Sampling,
    uniforms: Tensor | None = None,
    until: Callable[[Tensor], Tensor] | None = None,
) -> Written:
    """Go on with completions until each has come to its end.

    Every row grows by one token per step, tokens of the form too, so rows stay in step whatever each of them writes.

    Args:
        policy: what writes.
        layout: grammar of the completions.
        requests: says which items rows may get, by `state.owner`.
        begun: R requests with all that stands before the first token to write, padded on any side.
        state: [n] states to go on from; n is a multiple of R, row i goes on behind row i // (n / R).
        sampling: see `write`.
        uniforms: [n, T] numbers in [0, 1), one per token; None: the likeliest token.
        until: sites [n] -> rows that stop [n] before their end.
    """
    count, most = len(state.site), layout.length
    ends = until or (lambda site: site < 0)
    settles = until is None and sampling.normalize != "vocab" and (layout.in_step or layout.in_words)
    in_step = layout.in_step and until is None
    shape = len(begun), count // len(begun)
    growth = policy.grow(begun, shape[1], most - 1, head_rows(layout, sampling.normalize), apart=not in_step)
    behind = torch.arange(count, device=state.site.device) // shape[1]
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor, State]] = []
    going = None if until is None and layout.in_step else ~ends(state.site)
    drawn, needed = torch.empty(0), going
    for position in range(most):
        if going is not None and looks(position, going.device) and not bool(going.any()):
            break
        noise = None if uniforms is None else uniforms[:, position]
        site = position if in_step else None
        draw = partial(_draw, layout, requests, state, site, going, noise, sampling)
        if position:
            live = None if needed is None else needed.view(shape)
            drawn, choices, logps, entropy = growth.extend(drawn.view(shape), draw, live=live)
        elif in_step:  # completions of a request have one distribution in common
            alike = state.each(lambda value: value[:: shape[1]])
            draw = partial(_draw_at, layout, requests, alike, 0, noise, sampling, share=shape[1])
            drawn, choices, logps, entropy = growth.begin(draw)
        else:
            drawn, choices, logps, entropy = growth.begin(lambda said, draw=draw: draw(said[behind]))  # type: ignore[misc]
        before = state if going is None else _stopped(state, going)
        steps.append((drawn, choices, logps, entropy, before))
        ahead = layout.advance(state, drawn, site)
        state = ahead if going is None else ahead.where(going, state)
        if going is not None:
            going = going & ~ends(state.site)
        needed = going
        if settles and position + 1 < most:
            needed = ~layout.settled(state, position + 1 if in_step else None)
    if not steps:
        empty = torch.zeros(count, 0, dtype=torch.int64, device=state.site.device)
        nothing = state.each(lambda value: value[:, None][:, :0])
        return Written(empty, nothing, empty.float(), empty.float(), empty, state, empty.bool())
    columns = list(zip(*steps, strict=True))
    states = stacked(columns[4])
    tokens, choices, logps, entropy = (torch.stack(part, dim=1) for part in columns[:4])
    whole = Written(tokens, states, logps, entropy, choices, state, states.site >= 0)
    return whole if going is None or looks(1, going.device) else _trimmed(whole)


def _trimmed(written: Written) -> Written:
    """Without the columns that were computed before it was seen that all rows had ended."""
    length = int(written.mask.any(0).sum())
    parts = {name: getattr(written, name)[:, :length] for name in ("tokens", "logps", "entropy", "choices", "mask")}
    return replace(written, **parts, states=written.states.each(lambda value: value[:, :length]))


def _stopped(state: State, going: Tensor) -> State:
    """States of rows that go on; the others have site -1, as padding has."""
    return state.where(going, state.each(lambda value: torch.full_like(value, -1)))


def _draw(
    layout: Layout,
    requests: Requests,
    state: State,
    site: int | None,
    going: Tensor | None,
    uniforms: Tensor | None,
    sampling: Sampling,
    said: Next,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token per row [n], rows at the same site together: tokens, number of legal ones, log-probability, entropy."""
    if site is not None:
        return _draw_at(layout, requests, state, site, uniforms, sampling, said)
    tokens, choices = torch.zeros_like(state.site), torch.zeros_like(state.site)
    logps, entropies = torch.zeros_like(tokens, dtype=torch.float32), torch.zeros_like(tokens, dtype=torch.float32)
    for one, rows in by_site(state.site, going):
        noise = None if uniforms is None else uniforms[rows]
        part = _draw_at(layout, requests, state.rows(rows), one, noise, sampling, said[rows])
        for whole, values in zip((tokens, choices, logps, entropies), part, strict=True):
            whole[rows] = values.to(whole.dtype)
    return tokens, choices, logps, entropies


def _draw_at(
    layout: Layout,
    requests: Requests,
    state: State,
    site: int,
    uniforms: Tensor | None,
    sampling: Sampling,
    said: Next,
    share: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_draw` for rows that all stand at one site, and `share` tokens [n * share] for each of them."""
    legal = (layout.narrow if said.narrow else layout.legal)(site, state, requests)
    if legal.form:
        nothing = torch.zeros_like(state.site)[:, None].expand(-1, share)
        return legal.token(nothing).flatten(), nothing.flatten(), *(2 * (nothing.flatten().float(),))
    log_probs, drawing, entropy = distribution(said, legal, sampling.at(layout, site), sampling.normalize)
    if uniforms is None:
        columns = drawing.argmax(1, keepdim=True).expand(-1, share)
    else:
        columns = invert(drawing.exp(), uniforms.view(-1, share))
    choices = legal.mask.sum(1).expand(len(log_probs)).repeat_interleave(share)
    logps = log_probs.gather(1, columns).flatten()
    return legal.token(columns).flatten(), choices, logps, entropy.repeat_interleave(share)


def by_site(sites: Tensor, going: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Sites at which rows [n] stand, and those rows, each site in turn; rows that have ended stand nowhere."""
    kept = (sites if going is None else torch.where(going, sites, -1)).cpu()  # the host looks once
    for site in kept.unique().tolist():
        if site >= 0:
            yield site, sent((kept == site).nonzero()[:, 0], sites.device)


def completed(
    layout: Layout,
    group: int,
    tokens: Tensor,
    states: State,
    choices: Tensor,
    logps: Tensor,
    entropy: Tensor,
    sampling: Sampling,
    requests: Requests | None = None,
) -> Completions:
    """Completions [B, T], `group` for each request, with all that credit and scoring need, read by their layout."""
    owner = torch.arange(len(tokens), device=tokens.device) // group
    reading = layout.read(tokens, replace(states, owner=owner[:, None].expand_as(states.site)), requests)
    # a token with one legal value is forced: log-probability 0, nothing to learn; 0 stands where nothing is chosen
    chosen = choices > (1 if sampling.normalize == "legal" else 0)
    return Completions(
        tokens=tokens,
        chosen=chosen,
        step_ids=reading.step_ids,
        item_ids=reading.item_ids,
        states=states,
        codes=reading.codes,
        items=reading.items,
        logps=logps.masked_fill(~chosen, 0.0),
        entropy=entropy.masked_fill(~chosen, 0.0),
        group_size=group,
        num_steps=layout.steps,
        closed=reading.closed,
    )


def targets_as_completions(layout: Layout, requests: Requests) -> Completions:
    """The targets themselves as completions, one per request: what plain cross-entropy trains on."""
    tokens = layout.compose(requests.wanted.items[:, : layout.items])
    states = layout.replay(tokens)
    zeros = torch.zeros_like(tokens, dtype=torch.float32)
    return completed(layout, 1, tokens, states, open_choices(layout, states), zeros, zeros, Sampling(), requests)


def open_choices(layout: Layout, states: State) -> Tensor:
    """Number of legal tokens at each place of completions with states [B, T], filters of items left out; 0: form."""
    flat = states.each(lambda value: value.flatten(0, 1))
    choices = torch.zeros_like(flat.site)
    for site, rows in by_site(flat.site):
        legal = layout.legal(site, flat.rows(rows), None)
        if not legal.form:
            choices[rows] = legal.mask.sum(1).expand(len(rows))
    return choices.view(states.site.shape)
