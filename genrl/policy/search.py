"""Beam search under any layout: where a layout has text, it is written first, then the items behind it are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from genrl.batches import Batch, Completions, Ranking, Requests, State, beside, concatenate, padded, widened
from genrl.errors import ConfigError, UnsupportedError
from genrl.layouts.base import BROKEN, ENDED, Layout, Legal
from genrl.metrics.functional import distinct, exclude_history
from genrl.ops import sent
from genrl.policy.distribution import RANKING, Sampling, check_tokens, distribution, head_rows
from genrl.policy.protocol import Generative, Growth, Next, Say
from genrl.policy.write import completed, go_on

T = TypeVar("T")
WIDEN = 4
"""How many times wider each further beam of an exact ranking is."""
WIDEST = 16384
"""Places of the widest beam of an exact ranking; memory grows with it. Rankings that need more stay uncertified."""
SLACK = 0.05
"""What a beginning's log-probability may lack to that of the last wanted item: two passes differ by rounding."""
ROWS = 1024
"""Beams that write at a time, where each beam has text of its own; it bounds memory, not results."""


PARTS = ("tokens", "logps", "entropy", "choices", "mask", "states")
"""What `Written` calls the places."""


@dataclass(frozen=True, slots=True)
class Places(Batch):
    """t tokens of n rows, or of W beams for each of P requests: tensors [n, t] or [P, W, t]."""

    tokens: Tensor = field(metadata=padded("right"))
    logps: Tensor = field(metadata=padded("right"))
    entropy: Tensor = field(metadata=padded("right"))
    choices: Tensor = field(metadata=padded("right"))
    """Number of legal tokens, as in `Written`."""
    real: Tensor = field(metadata=padded("right"))
    """Whether a token was written there."""
    states: State = field(metadata=padded("right", -1))


@dataclass
class Beams:
    """W beams for each of P requests; a beam that does not exist is broken."""

    state: State
    """Of [P * W]."""
    totals: Tensor
    """[P, W] log-probability of the item tokens so far."""
    keys: Tensor
    """[P, W] what beams are ranked by: totals, or perturbed ones."""
    bound: Tensor
    """[P] best score of a beginning that was given up."""
    history: tuple[tuple[Places, Tensor | None], ...] = ()
    """What was written in turn, and the parents [P, W] it was written behind; None: the beams themselves."""

    @property
    def alive(self) -> Tensor:
        """[P * W] bool: beams that go on."""
        return self.state.site >= 0

    def rows(self, rows: Tensor) -> Beams:
        """Of some requests, while each has one beam."""
        state: Any = self.state.rows(rows)
        return Beams(
            replace(state, owner=torch.arange(len(rows), device=rows.device)),
            self.totals[rows],
            self.keys[rows],
            self.bound[rows],
            tuple((places.rows(rows), parents) for places, parents in self.history),
        )

    def written(self) -> Places:
        """All that each beam and its ancestors have written, [P, W, t]."""
        rows = torch.arange(len(self.totals), device=self.totals.device)[:, None]
        index, columns = None, []
        for places, parents in reversed(self.history):
            columns.append(places if index is None else places.each(partial(_pick, rows, index)))
            if parents is not None:
                index = parents if index is None else parents.gather(1, index)
        return reduce(partial(beside, dim=2), reversed(columns))

    def behind(self, requests: Requests) -> Requests:
        """A request [P * W] for each beam, whose prompt has what the beam wrote behind it."""
        if not self.history:
            return requests
        own, each = self.written().each(lambda value: value.flatten(0, 1)), requests.repeat(self.totals.shape[1])
        tokens = torch.cat([each.tokens, own.tokens], dim=1)
        return replace(each, tokens=tokens, mask=torch.cat([each.mask, own.real], dim=1))


def _pick(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    return values[rows, columns]


@torch.no_grad()
def search(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    width: int,
    sampling: Sampling = RANKING,
    *,
    gumbels: Tensor | None = None,
    noise: Tensor | None = None,
    exact: int = 0,
    besides: Tensor | None = None,
    beams: int = 0,
    behind: Sequence[Beams] | None = None,
    plain: bool = False,
    settle: bool = False,
) -> tuple[Ranking, Completions]:
    """The most likely items found by beam search, best first, with a bound for those that are not listed.

    Text is not searched: it is written, by the likeliest words or with `noise`, and the items behind it are ranked by
    the log-probability of their own tokens. Where text stands between the tokens of items, every beam goes on writing
    before its next token, and is computed anew with its prompt each time. With S > 1 samples of text an item's score is
    log 1/S sum_s p(item | text s): what any of the S searches finds is scored behind all texts.

    With `gumbels` the search is Stochastic Beam Search (Kool, van Hoof and Welling 2019, arXiv:1903.06059):
    log-probabilities are perturbed top-down with Gumbel noise conditioned on the parent's maximum, which draws `width`
    distinct completions without replacement in one pass.

    A filter of items (`Layout.only`, `Requests.pool`, `Requests.deny`) takes items out and, with
    `normalize="catalogue"`, leaves the scores of the others as they are in the whole catalogue.

    Args:
        policy: what ranks.
        layout: grammar of the completions.
        requests: P prompts, padded on any side.
        width: places of the ranking, and of the beam where `beams` says nothing else.
        sampling: temperatures and what probabilities sum to one over.
        gumbels: [P, T, width, codes] standard Gumbel noise, codes at least those of the largest level.
        noise: [P, S, layout.length] numbers in [0, 1) for S samples of text; None: one, of the likeliest words.
        exact: make the beam wider for the requests that need it, until this many first items are certified to be the
            best of the whole catalogue or the beam has `WIDEST` places; 0 takes what the beam finds.
        besides: [P, D] catalogue rows that do not count among the `exact` items, though they may be listed; -1 is none.
        beams: width of the beam; 0: as many as places.
        behind: what `think` wrote with the same noise, for searches that share it; None: it is written here.
        plain: count the ranking without any text among the samples, as one more.
        settle: of completions of several items keep only the best beam whenever an item is whole, so that each place
            is filled by the best item given those before; else beams are followed to their ends.

    Returns:
        The ranking, and the completions of the beams [P * W], best first, -1 where fewer exist. Those of a request
        stand behind the text that makes its first item likeliest; of an exact search they are those of its first beam.

    Raises:
        ConfigError: if more items shall be exact than there are places.
        UnsupportedError: if items must be exact where beams write between their tokens.
    """
    if exact > width:
        raise ConfigError(f"the first {exact} of {width} places cannot be exact. Make the beam {exact} wide or wider.")
    check_tokens(policy, layout)
    begun = behind or think(policy, layout, requests, sampling, noise)
    uniforms = [None] * len(begun) if noise is None or not layout.writes_text else list(noise.unbind(1))
    texts = [_Text(layout, *pair) for pair in zip(begun, uniforms, strict=True)]
    if plain and layout.writes_text:
        texts.append(_Text(layout.plain, think(policy, layout.plain, requests, sampling)[0], None))
    find = partial(_searched, policy, width=width, sampling=sampling, certain=exact > 0, settle=settle)
    ranking, rankings, searched = find(requests, texts, beams=beams or width, gumbels=gumbels)
    if exact:
        ranking = _widened(find, layout, requests, texts, ranking, beams or width, exact, besides)
    thought = len(begun)
    return ranking, _completions(layout, requests, _best(rankings[:thought], searched[:thought], ranking), sampling)


@dataclass(frozen=True)
class _Text:
    """One sample of the text of P requests."""

    layout: Layout
    begun: Beams
    """What `think` wrote."""
    uniforms: Tensor | None
    """[P, T] noise of what is written further on."""

    def rows(self, rows: Tensor) -> _Text:
        return _Text(self.layout, self.begun.rows(rows), None if self.uniforms is None else self.uniforms[rows])


def _searched(
    policy: Generative,
    requests: Requests,
    texts: Sequence[_Text],
    *,
    width: int,
    sampling: Sampling,
    certain: bool,
    beams: int,
    settle: bool = False,
    gumbels: Tensor | None = None,
    floor: Tensor | None = None,
) -> tuple[Ranking, Sequence[Ranking], Sequence[Beams]]:
    """The ranking by the mean over some texts, `width` long, with the ranking and the beams behind each of them."""

    def find(text: _Text, asked: Requests, beams: int, certain: bool, floor: Tensor | None) -> Beams:
        shared = sampling, text.uniforms, gumbels, certain, floor
        if settle and text.layout.in_words:
            return _line_by_line(
                text.layout,
                text.begun,
                lambda paused, begun: _search(policy, paused, asked, begun, beams, *shared, False),
            )
        return _search(policy, text.layout, asked, text.begun, beams, *shared, settle)

    wide = [find(text, requests, beams, certain, floor) for text in texts]
    if len(texts) == 1:
        only = _ranking(texts[0].layout, requests, wide[0], width)
        return only, [only], wide
    places = max(width, beams if beams < texts[0].layout.completions else len(texts[0].layout.codes))
    found = [_ranking(text.layout, requests, each, places) for text, each in zip(texts, wide, strict=True)]
    union = _union(found)
    rows = _incomplete(found, union).nonzero()[:, 0]
    whole = [_resized(each, union.shape[1]) for each in found]
    if rows.numel():
        asked = replace(requests.rows(rows), pool=union[rows])
        for place, text in enumerate(texts):
            again = find(text.rows(rows), asked, union.shape[1], False, None)
            listed = _ranking(text.layout, asked, again, union.shape[1])
            whole[place] = whole[place].put(rows, replace(listed, bound=_bound(found[place])[rows]))
    return merge(whole, width), found, wide


def think(
    policy: Generative, layout: Layout, requests: Requests, sampling: Sampling = RANKING, noise: Tensor | None = None
) -> list[Beams]:
    """Write what stands before the first item token, for each sample of `noise`; a filter of items changes nothing.

    Args:
        policy: what writes.
        layout: grammar of the completions.
        requests: P prompts.
        sampling: temperatures.
        noise: as in `search`.

    Returns:
        One beam per request for each sample.
    """
    count, device = len(requests), requests.tokens.device
    zeros = torch.zeros(count, 1, device=device)
    begun = Beams(layout.start(count), zeros, zeros, torch.full((count,), float("-inf"), device=device))
    if not layout.writes_text:
        return [begun]
    samples = [None] if noise is None else noise.unbind(1)
    return [_write(policy, layout, requests, replace(begun), sampling, uniforms) for uniforms in samples]


def _uncertain() -> UnsupportedError:
    return UnsupportedError(
        "a ranking by beams that think between their SID tokens cannot be certified to be exact. Set "
        "evaluate.exact=false (or leave --exact out), or use layout.order=tail."
    )


def _widened(
    find: Callable[..., tuple[Ranking, Sequence[Ranking], Sequence[Beams]]],
    layout: Layout,
    requests: Requests,
    texts: Sequence[_Text],
    ranking: Ranking,
    width: int,
    exact: int,
    besides: Tensor | None,
) -> Ranking:
    """The ranking with wider beams, from `width` on, where its first `exact` items are not certified.

    No item is among the wanted ones whose beginning is less likely than the last item that is listed of them: such
    beginnings are not followed.
    """
    beams, widest = width, min(layout.completions, max(WIDEST, width))
    while beams < widest:
        counted = ranking if besides is None else exclude_history(ranking, besides)
        unsure = (~counted.certified(exact)).nonzero()[:, 0]
        if unsure.numel() == 0:
            break
        beams = min(WIDEN * beams, widest)
        floor = counted.scores[:, exact - 1] - SLACK
        for rows in unsure.split(max(1, len(requests) * width // beams)):
            own = [text.rows(rows) for text in texts]
            ranking = ranking.put(rows, find(requests.rows(rows), own, beams=beams, floor=floor[rows])[0])
    return ranking


def _union(rankings: Sequence[Ranking]) -> Tensor:
    """The items that any of the rankings lists, each once: [P, U], -1 pads."""
    items = torch.cat([each.items for each in rankings], dim=1)
    kept = distinct(items)
    return kept[:, : max(rankings[0].items.shape[1], int((kept >= 0).sum(1).max()))]


def _incomplete(rankings: Sequence[Ranking], union: Tensor) -> Tensor:
    """Rows [P] in which a ranking lacks items of the union that it does not rule out."""
    count = (union >= 0).sum(1)
    lacking = [((each.items >= 0).sum(1) < count) & (_bound(each) > float("-inf")) for each in rankings]
    return torch.stack(lacking).any(0)


def _bound(ranking: Ranking) -> Tensor:
    assert ranking.bound is not None  # every search says it
    return ranking.bound


def _resized(ranking: Ranking, width: int) -> Ranking:
    """The ranking with `width` places."""
    missing = width - ranking.items.shape[1]
    return Ranking(
        pad(ranking.items, (0, missing), value=-1),
        pad(ranking.scores, (0, missing), value=float("-inf")),
        ranking.bound,
    )


def _ranking(layout: Layout, requests: Requests, beams: Beams, width: int) -> Ranking:
    """The first `width` items of the beams; the bound covers what the search gave up and what is cut off here."""
    items, scores = layout.rank(beams.state, beams.keys, width + 1, requests)
    return Ranking(items[:, :width], scores[:, :width], torch.maximum(beams.bound, scores[:, width]))


def _write(
    policy: Generative, layout: Layout, requests: Requests, beams: Beams, sampling: Sampling, uniforms: Tensor | None
) -> Beams:
    """Let every beam write until an item token is due.

    All beams of a request share its noise, place by place, so that the text of a beam depends on its own tokens alone
    and a wider beam finds a better ranking by the same scores.
    """
    item = sent(torch.tensor([kind == "item" for kind in layout.kinds] + [True]), beams.totals.device)
    width = beams.totals.shape[1]
    begun = beams.behind(requests)
    done = begun.mask[:, requests.mask.shape[1] :].sum(1)
    states, written = beams.state, []
    rows = sent(beams.alive.cpu().nonzero()[:, 0], beams.totals.device)
    if rows.numel() == 0:
        return beams
    for part in rows.split(ROWS if width > 1 else len(rows)):
        noise = None
        if uniforms is not None:  # place t of a completion has noise t
            place = done[part][:, None] + torch.arange(layout.length, device=part.device)
            noise = uniforms[part // width].gather(1, place.clamp(max=layout.length - 1))
        found = go_on(
            policy,
            layout,
            requests,
            begun.rows(part),
            states.rows(part),
            sampling,
            noise,
            lambda site: item[site],
        )
        beams.state = beams.state.put(part, found.state)
        written.append(found)
    every = reduce(concatenate, (Places(*(getattr(part, name) for name in PARTS)) for part in written))
    blank = every.each(lambda value: value.new_zeros(len(beams.alive), *value.shape[1:]))
    blank = replace(blank, states=blank.states.each(lambda value: value - 1))
    places = blank.put(rows, every).each(lambda value: value.unflatten(0, beams.totals.shape))
    beams.history = (*beams.history, (places, None))
    return beams


def _search(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    begun: Beams,
    width: int,
    sampling: Sampling,
    uniforms: Tensor | None,
    gumbels: Tensor | None,
    certain: bool,
    floor: Tensor | None,
    settle: bool,
) -> Beams:
    """Widen and follow beams until all have ended.

    Args:
        policy: what ranks.
        layout: grammar of the completions.
        requests: P prompts.
        begun: one beam each.
        width: beams.
        sampling: temperatures and what probabilities sum to one over.
        uniforms: [P, T] noise of the text; None: the likeliest words.
        gumbels: see `search`.
        certain: whether the ranking shall be certified.
        floor: [P] score below which nothing is followed; None: there is none.
        settle: see `search`.
    """
    beams = replace(begun)
    if floor is not None:
        beams.bound = torch.maximum(beams.bound, floor)
    growth: Growth | None = None
    parents = torch.empty(0)
    position = 0
    site = _site(layout, beams, position)
    while site is not None:
        if layout.kinds[site] == "word" or (layout.kinds[site] == "form" and not layout.in_step):
            if certain:
                raise _uncertain()
            beams, growth = _write(policy, layout, requests, beams, sampling, uniforms), None
            site = _site(layout, beams, position)
            continue
        legal = layout.legal(site, beams.state, requests)
        say = partial(_children, legal, sampling.at(layout, site), sampling.normalize)
        if growth is None:
            growth, found = _begin(policy, layout, requests, beams, width, sampling, say)
        else:
            live = beams.alive
            if sampling.normalize != "vocab":
                live = live & ~layout.settled(beams.state, site)
            drawn = beams.history[-1][0].tokens[:, :, -1]
            found = growth.extend(drawn, say, parents, live.view(drawn.shape))
        noise = None if gumbels is None else gumbels[:, position]
        most = 1 if settle and layout.ends_item(site) else width
        parents = _widen(layout, beams, legal, *found, most, site, noise, floor)
        position += 1
        site = _site(layout, beams, position)
    return beams


def _line_by_line(layout: Layout, begun: Beams, find: Callable[[Layout, Beams], Beams]) -> Beams:
    """Beams for one item after the other, of which the best goes on behind each.

    Items end at different lengths, so each is searched to the end of the longest before the next one begins; what was
    written is computed anew with its prompt.

    Args:
        layout: grammar of the completions.
        begun: one beam for each request.
        find: beams of a layout that go on behind others.
    """
    paused = layout.pause()
    beams = find(paused, begun)
    for _ in range(layout.items - 1):
        beams = _best_beam(beams)
        beams.state = layout.resume(beams.state)
        beams = find(paused, beams)
    return beams


def _best_beam(beams: Beams) -> Beams:
    """The first beam of each request alone."""
    prompts, width = beams.totals.shape
    rows = torch.arange(prompts, device=beams.totals.device)
    places, _ = beams.history[-1]
    nothing = places.each(lambda value: value[:, :1, :0])
    parents = rows.new_zeros(prompts, 1)
    return replace(
        beams,
        state=beams.state.rows(rows * width),
        totals=beams.totals[:, :1],
        keys=beams.keys[:, :1],
        history=(*beams.history, (nothing, parents)),
    )


def _children(legal: Legal, temperature: float, normalize: str, said: Next) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the children of each beam, and the entropy of their distribution."""
    if legal.form:
        nothing = torch.zeros_like(legal.mask, dtype=torch.float32)
        return nothing, nothing[:, 0]
    log_probs, _, entropy = distribution(said, legal, temperature, normalize)
    return log_probs, entropy


def _site(layout: Layout, beams: Beams, position: int) -> int | None:
    """Where all beams stand that go on; None: all have ended.

    Raises:
        UnsupportedError: if they stand at different sites.
    """
    if layout.in_step:
        return position if position < layout.length else None
    sites = beams.state.site.cpu().unique()  # the host looks once
    sites = sites[sites >= 0].tolist()
    if len(sites) > 1:
        raise UnsupportedError(f"beams of one search stand at different sites {sites}: sample instead")
    return int(sites[0]) if sites else None


def _begin(
    policy: Generative, layout: Layout, requests: Requests, beams: Beams, width: int, sampling: Sampling, say: Say[T]
) -> tuple[Growth | None, T]:
    """What goes on from all that beams have written, and what is said of the tokens behind it.

    Beams with text of their own are computed anew each time.
    """
    begun, head = beams.behind(requests), head_rows(layout, sampling.normalize)
    if beams.totals.shape[1] == 1:
        growth = policy.grow(begun, width, layout.item_tokens - 1, head, apart=layout.in_words)
        return growth, growth.begin(say)
    rows = beams.alive.nonzero()[:, 0]
    places = (beams.alive.cumsum(0) - 1).clamp(min=0)  # what is said of beams that have ended has no meaning
    return None, policy.grow(begun.rows(rows), 1, 0, head).begin(lambda said: say(said[places]))


def _widen(
    layout: Layout,
    beams: Beams,
    legal: Legal,
    log_probs: Tensor,
    entropy: Tensor,
    width: int,
    site: int,
    gumbels: Tensor | None,
    floor: Tensor | None,
) -> Tensor:
    """Give every beam its best children, in place; returns their parents [P, W]."""
    prompts, slots = beams.totals.shape
    codes = log_probs.shape[1]
    log_probs = log_probs.view(prompts, slots, codes).masked_fill(~beams.alive.view(prompts, slots, 1), float("-inf"))
    done = (beams.state.site == ENDED) & layout.in_words  # these stay as they are until the others have ended, too
    log_probs[:, :, 0] = log_probs[:, :, 0].masked_fill(done.view(prompts, slots), 0.0)
    reached = beams.totals[:, :, None] + log_probs
    if floor is not None:
        reached = reached.masked_fill(reached < floor[:, None, None], float("-inf"))
    ranked = reached if gumbels is None else _perturb(reached, beams.keys, gumbels[:, :slots, :codes])
    keep = min(width, slots * codes)
    best, flat = ranked.reshape(prompts, -1).topk(min(keep + 1, slots * codes), dim=1)
    if best.shape[1] > keep:
        beams.bound = torch.maximum(beams.bound, best[:, keep])
    if floor is not None:  # few are left
        keep = max(1, min(keep, int((best > float("-inf")).sum(1).max())))
    keys, flat = best[:, :keep], flat[:, :keep]
    parents, columns = flat // codes, flat % codes
    rows = torch.arange(prompts, device=flat.device)[:, None]
    above = (rows * slots + parents).flatten()
    exists = keys > float("-inf")
    drawn = legal.token(columns.view(-1, 1), above).view(prompts, keep)
    written = exists & ~done[above].view(prompts, keep)
    choices = torch.zeros_like(drawn)
    if not legal.form:
        choices = legal.mask.sum(1).expand(prompts * slots)[above].view(prompts, keep) * written
    before = beams.state.rows(above)
    logps, entropy = log_probs[rows, parents, columns], entropy.view(prompts, slots)[rows, parents]
    states = before.each(lambda value: value.unflatten(0, (prompts, keep))[:, :, None])
    drawn, logps, entropy, choices, real = (part[:, :, None] for part in (drawn, logps, entropy, choices, written))
    beams.history = (*beams.history, (Places(drawn, logps, entropy, choices, real, states), parents))
    beams.totals, beams.keys = reached[rows, parents, columns], keys
    state = layout.advance(before, drawn.flatten(), site if layout.in_step else None)
    beams.state = replace(state, site=torch.where(exists.flatten(), state.site, BROKEN))
    return parents


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


def merge(rankings: Sequence[Ranking], width: int) -> Ranking:
    """Rankings of the same requests by S samples of text, [P, U] each -> one [P, width] by mean probability.

    All of them list the same items but those that are impossible behind their text, and leave out the same ones.

    Example:
        >>> out = torch.tensor([-3.0])
        >>> one = Ranking(torch.tensor([[4, 2]]), torch.tensor([[0.6, 0.3]]).log(), out)
        >>> two = Ranking(torch.tensor([[2, 4]]), torch.tensor([[0.9, 0.1]]).log(), out)
        >>> merged = merge([one, two], 2)
        >>> merged.items.tolist(), merged.scores.exp().mul(100).round().tolist(), merged.bound.tolist()
        ([[2, 4]], [[60.0, 35.0]], [-3.0])
    """
    items = torch.cat([each.items for each in rankings], dim=1)
    scores = torch.cat([each.scores for each in rankings], dim=1).double()
    largest = scores.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
    values, order = items.sort(dim=1, stable=True)
    opens = torch.ones_like(values, dtype=torch.bool)
    opens[:, 1:] = values[:, 1:] != values[:, :-1]
    group = opens.long().cumsum(1) - 1  # entries of one item have one number
    masses = torch.zeros_like(scores).scatter_add(1, group, (scores - largest).exp().gather(1, order))
    places = torch.full_like(items, items.shape[1]).scatter_reduce(1, group, order, "amin")  # where it is listed first
    named = torch.full_like(items, -1).scatter(1, group, values)
    early = places.argsort(dim=1, stable=True)  # items of one SID stay in the order of the trie
    best = early.gather(1, masses.gather(1, early).argsort(dim=1, descending=True, stable=True))[:, : width + 1]
    count = torch.tensor(float(len(rankings)))
    total = (masses.gather(1, best).log() + largest - count.log()).float()
    kept = named.gather(1, best).masked_fill(total == float("-inf"), -1)
    bound = (torch.stack([_bound(each) for each in rankings]).double().logsumexp(0) - count.log()).float()
    if best.shape[1] > width:
        bound = torch.maximum(bound, total[:, width])
    return Ranking(kept[:, :width], total.masked_fill(kept < 0, float("-inf"))[:, :width], bound)


def _best(rankings: Sequence[Ranking], searched: Sequence[Beams], merged: Ranking) -> Places:
    """For each request what the beams wrote behind the text that makes its first item likeliest, [P, W, t]."""
    written = [beams.written() for beams in searched]
    if len(written) == 1:
        return written[0]
    likely = [each.scores.masked_fill(each.items != merged.items[:, :1], float("-inf")).amax(1) for each in rankings]
    top, width = torch.stack(likely).argmax(0), max(each.tokens.shape[1] for each in written)
    flat = [each.each(lambda value: widened(value, width).flatten(0, 1)) for each in written]
    whole = reduce(concatenate, flat).each(lambda value: value.unflatten(0, (len(written), len(top), width)))
    return whole.each(lambda value: value[top, torch.arange(len(top), device=top.device)])


def _completions(layout: Layout, requests: Requests, places: Places, sampling: Sampling) -> Completions:
    """The beams as completions, without the gaps behind text that was shorter than that of others."""
    group, flat = places.tokens.shape[1], places.each(lambda value: value.flatten(0, 1))
    order = (~flat.real).byte().argsort(dim=1, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None]
    own = flat.each(lambda value: value[rows, order])
    states = replace(own.states, site=torch.where(own.real, own.states.site, BROKEN))
    return completed(layout, group, own.tokens, states, own.choices, own.logps, own.entropy, sampling, requests)
