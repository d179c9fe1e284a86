"""Rankings of a policy that thinks: the thinking is written, then a beam search ranks the items behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from genrl.batches import Ranking
from genrl.errors import UnsupportedError
from genrl.layouts.base import Legal, ThinkingLayout
from genrl.layouts.blocked import Words
from genrl.policy.decode import rank
from genrl.policy.model import Policy
from genrl.policy.score import distribution
from genrl.policy.tree import left_padded, prompt_positions, right_padded
from genrl.policy.writing import write

ROWS = 1024
"""Beams that think at a time, where each beam has thinking of its own; it bounds memory, not results."""


@dataclass(frozen=True)
class Thoughts:
    """S trains of thought behind each of P prompts, up to the first SID token."""

    prompts: Tensor
    """[P, L] int64."""
    prompt_mask: Tensor
    """[P, L] bool."""
    tokens: Tensor
    """[P, S, T] int64, padded on the right."""
    mask: Tensor
    """[P, S, T] bool."""
    states: Tensor
    """[P, S] int64 states of the layout behind them; finished ones failed, see `layout.on_budget`."""
    uniforms: Tensor | None
    """[P, S, longest completion] the noise they were drawn with; None: the likeliest words."""
    temperature: float
    """Of the words."""


@dataclass(frozen=True)
class Reasoned:
    """A ranking with the thinking it came from."""

    ranking: Ranking
    """No items (-1) where all trains of thought of a prompt failed."""
    tokens: Tensor
    """[P, S, T] int64 thinking, padded on the right. Between blocks of an interleaved layout stand the SID tokens of
    the beam that ended up first."""
    mask: Tensor
    """[P, S, T] bool."""
    best: Tensor
    """[P] int64: which of the S trains of thought makes the first item likeliest."""

    def shown(self) -> list[Tensor]:
        """Tokens of that train of thought for each prompt, without padding."""
        chosen = zip(self.tokens, self.mask, self.best.tolist(), strict=True)
        return [tokens[best][mask[best]] for tokens, mask, best in chosen]


def reason(
    policy: Policy,
    layout: ThinkingLayout,
    tokens: Tensor,
    mask: Tensor,
    width: int,
    *,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    exact: int = 0,
) -> Reasoned:
    """Think, then rank the layout's items; see `think` and `conclude` for what the arguments mean."""
    thoughts = think(policy, layout, tokens, mask, uniforms=uniforms, temperature=temperature)
    return conclude(policy, layout, thoughts, width, exact=exact)


def think(
    policy: Policy,
    layout: ThinkingLayout,
    tokens: Tensor,
    mask: Tensor,
    *,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> Thoughts:
    """Write what stands before the first SID token. A filter of items makes no difference to it.

    Args:
        policy: what thinks.
        layout: grammar of the completions.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        uniforms: [P, S, longest completion] numbers in [0, 1) for S sampled trains of thought; None: one, of the
            likeliest words.
        temperature: of sampled words.
    """
    prompts, samples = len(tokens), 1 if uniforms is None else uniforms.shape[1]
    noise = None if uniforms is None else uniforms.flatten(0, 1)
    start = layout.start(prompts * samples)
    written = write(policy, layout, tokens, mask, start, noise, thinking_temperature=temperature, until=layout.thought)
    words, real, states = (
        part.unflatten(0, (prompts, samples)) for part in (written.tokens, written.mask, written.states)
    )
    return Thoughts(tokens, mask, words, real, states, uniforms, temperature)


@torch.no_grad()
def conclude(policy: Policy, layout: ThinkingLayout, thoughts: Thoughts, width: int, *, exact: int = 0) -> Reasoned:
    """Rank the layout's items behind given thinking.

    Where all thinking stands before the SID, each train of thought is computed once more with its prompt and a beam
    search follows. Where blocks stand between SID tokens, every beam goes on thinking before its next token. It is then
    computed anew with its prompt at each level, so a ranking costs about width x levels passes over prompt and
    completion besides the writing.

    The score of an item is the log-probability of its SID tokens, not of the words. With S > 1 trains of thought it is
    log 1/S sum_s p(item | thinking s), a lower bound: an item that is not in the list of s, which is `width` long,
    counts as p = 0 there. Such rankings have no bound for items that are not listed.

    Args:
        policy: what thought.
        layout: grammar of the completions; its items may be filtered for the P prompts.
        thoughts: from `think`.
        width: places of the ranking and width of the beam.
        exact: first items to certify, see `genrl.policy.decode.rank`.

    Raises:
        UnsupportedError: if items must be exact where several trains of thought or beams that think are merged.
    """
    samples = thoughts.states.shape[1]
    first = _thinks_first(layout, thoughts.states.flatten())
    if exact and (samples > 1 or not first):
        cause = "beams that think between their SID tokens" if not first else f"{samples} trains of thought"
        raise UnsupportedError(
            f"a ranking by {cause} cannot be certified to be exact. Leave evaluate.exact (or --exact) out, or use "
            f"evaluate.thinking_samples=0 or 1 with layout.order=tail."
        )
    rankings, written = [], []
    for sample in range(samples):
        block, seen, states = (part[:, sample] for part in (thoughts.tokens, thoughts.mask, thoughts.states))
        tokens, mask = torch.cat([thoughts.prompts, block], 1), torch.cat([thoughts.prompt_mask, seen], 1)
        if first:
            rankings.append(_search(policy, layout, tokens, mask, states, width, exact))
            written.append((block, seen))
            continue
        parts = []
        for rows in torch.arange(len(states), device=states.device).split(max(1, ROWS // width)):
            own = layout.requests(rows)
            assert isinstance(own, ThinkingLayout)
            noise = None if thoughts.uniforms is None else thoughts.uniforms[rows, sample]
            start, warmth = thoughts.prompts.shape[1], thoughts.temperature
            parts.append(_alternate(policy, own, tokens[rows], mask[rows], states[rows], start, noise, warmth, width))
        found, blocks, reals = zip(*parts, strict=True)
        rankings.append(_joined(found))
        written.append((torch.cat(_even(blocks)), torch.cat(_even(reals))))
    ranking = merge(rankings)
    tokens, mask = (torch.stack(_even(blocks), dim=1) for blocks in zip(*written, strict=True))
    top = torch.stack(
        [each.scores.masked_fill(each.items != ranking.items[:, :1], float("-inf")).amax(1) for each in rankings], dim=1
    )
    return Reasoned(ranking, tokens, mask, top.argmax(1))


def merge(rankings: Sequence[Ranking]) -> Ranking:
    """Rankings [P, W] of the same prompts by S trains of thought -> one by mean probability, without a bound.

    An item counts as impossible where it is not listed, so that scores are lower bounds of the true ones.

    Example:
        >>> one = Ranking(torch.tensor([[4, 2]]), torch.tensor([[0.6, 0.3]]).log())
        >>> two = Ranking(torch.tensor([[7, 4]]), torch.tensor([[0.9, 0.1]]).log())
        >>> merged = merge([one, two])
        >>> merged.items.tolist(), merged.scores.exp().mul(100).round().tolist()
        ([[7, 4]], [[45.0, 35.0]])
    """
    if len(rankings) == 1:
        return rankings[0]
    width = rankings[0].items.shape[1]
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
    best = early.gather(1, masses.gather(1, early).argsort(dim=1, descending=True, stable=True))[:, :width]
    total = (masses.gather(1, best).log() + largest - torch.tensor(float(len(rankings))).log()).float()
    kept = named.gather(1, best).masked_fill(total == float("-inf"), -1)
    return Ranking(kept, total.masked_fill(kept < 0, float("-inf")))


def read_blocks(words: Words, tokens: Tensor) -> list[list[int]]:
    """Words [..] of each think block in a completion [T]; a block that was never closed ends with the completion."""
    blocks: list[list[int]] = []
    inside = False
    for token in tokens.tolist():
        if token == words.opening:
            blocks.append([])
            inside = True
        elif token == words.closing:
            inside = False
        elif inside:
            blocks[-1].append(token)
    return blocks


def _thinks_first(layout: ThinkingLayout, states: Tensor) -> bool:
    """Whether all thinking stands before the first SID token: then behind that token the next one is due.

    Args:
        layout: grammar of the completions.
        states: [n] where the first SID token is due, or nothing any more.
    """
    due = states[~layout.finished(states)][:1]
    legal = layout.requests(torch.zeros_like(due)).legal(0, due)
    token = legal.mask.byte().argmax(1) + legal.first
    return bool(layout.thought(layout.advance(0, due, token)).all())


def _search(
    policy: Policy, layout: ThinkingLayout, tokens: Tensor, mask: Tensor, states: Tensor, width: int, exact: int
) -> Ranking:
    """Rank the items behind prompts with their thinking [P, L]; none where the thinking failed."""
    ranking = _nothing(len(tokens), width, tokens.device)
    alive = (~layout.finished(states)).nonzero()[:, 0]
    if alive.numel() == 0:
        return ranking
    items = layout.items.requests(alive)
    return ranking.replaced(alive, rank(policy, items, tokens[alive], mask[alive], width, exact=exact))


def _alternate(
    policy: Policy,
    layout: ThinkingLayout,
    tokens: Tensor,
    mask: Tensor,
    states: Tensor,
    start: int,
    uniforms: Tensor | None,
    temperature: float,
    width: int,
) -> tuple[Ranking, Tensor, Tensor]:
    """Beam search in which every beam thinks before each of its SID tokens.

    All beams of a prompt share its noise, place by place, so that the thinking of a beam depends on its own SID tokens
    alone and a wider beam finds a better ranking by the same scores.

    Args:
        policy: what thinks.
        layout: grammar of the completions.
        tokens: prompts with the first block [P, L].
        mask: [P, L].
        states: [P] behind the first block.
        start: columns of the prompt.
        uniforms: [P, longest completion], or None.
        temperature: of sampled words.
        width: beams.

    Returns:
        The ranking, and tokens and mask [P, T] of the best beam up to its last block.
    """
    grammar, prompts = layout.items, len(tokens)
    rows = torch.arange(prompts, device=tokens.device)[:, None]
    text, seen = tokens[:, None], mask[:, None]
    states, nodes = states[:, None], grammar.start(prompts)[:, None]
    totals = torch.zeros(prompts, 1, device=tokens.device)
    bound = torch.full((prompts,), float("-inf"), device=tokens.device)
    for level in range(layout.num_steps):
        if level:
            text, seen, states = _go_on(policy, layout, text, seen, states, nodes, start, uniforms, temperature)
        live = (nodes >= 0) & ~layout.finished(states)
        first, log_probs = _next_codes(policy, layout, level, text, seen, nodes, live)
        reached = totals[:, :, None] + log_probs
        codes = log_probs.shape[2]
        keep = min(width, reached[0].numel())
        best, flat = reached.flatten(1).topk(min(keep + 1, reached[0].numel()), dim=1)
        if best.shape[1] > keep:
            bound = torch.maximum(bound, best[:, keep])
        totals, flat = best[:, :keep], flat[:, :keep]
        parents, drawn, exists = flat // codes, flat % codes + first, best[:, :keep] > float("-inf")
        behind = layout.advance(0, states[rows, parents].flatten(), drawn.flatten()).view(prompts, keep)
        below = grammar.advance(level, nodes[rows, parents].clamp(min=0).flatten(), drawn.flatten())
        states = torch.where(exists, behind, 0)
        nodes = torch.where(exists, below.view(prompts, keep), -1)
        text = torch.cat([text[rows, parents], drawn[:, :, None]], dim=2)
        seen = torch.cat([seen[rows, parents], exists[:, :, None]], dim=2)
    items, scores = grammar.rank(nodes, totals, width + 1)
    ranking = Ranking(items[:, :width], scores[:, :width], torch.maximum(bound, scores[:, width]))
    return ranking, *right_padded(text[:, 0, start:-1], seen[:, 0, start:-1])


def _go_on(
    policy: Policy,
    layout: ThinkingLayout,
    text: Tensor,
    seen: Tensor,
    states: Tensor,
    nodes: Tensor,
    start: int,
    uniforms: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the next block of every beam [P, W] that has a node; see `_alternate`."""
    rows, slots = (nodes >= 0).nonzero().unbind(1)
    if rows.numel() == 0:
        return text, seen, states
    noise = None
    if uniforms is not None:  # place t of a completion has noise t
        place = seen[rows, slots, start:].sum(1)[:, None] + torch.arange(layout.length, device=text.device)
        noise = uniforms[rows].gather(1, place.clamp(max=layout.length - 1))
    written = write(
        policy,
        layout,
        text[rows, slots],
        seen[rows, slots],
        states[rows, slots],
        noise,
        thinking_temperature=temperature,
        until=layout.thought,
    )
    shape = (*nodes.shape, written.tokens.shape[1])
    block = text.new_zeros(shape).index_put((rows, slots), written.tokens)
    real = seen.new_zeros(shape).index_put((rows, slots), written.mask)
    states = states.index_put((rows, slots), written.states)
    return torch.cat([text, block], dim=2), torch.cat([seen, real], dim=2), states


def _next_codes(
    policy: Policy, layout: ThinkingLayout, level: int, text: Tensor, seen: Tensor, nodes: Tensor, live: Tensor
) -> tuple[int, Tensor]:
    """Token id of the first code of a level and log-probabilities [P, W, codes]; -inf where illegal or not live."""
    legal = layout.items.legal(level, nodes.clamp(min=0).flatten())
    log_probs = torch.full((live.numel(), legal.mask.shape[1]), float("-inf"), device=live.device)
    chosen = live.flatten().nonzero()[:, 0]
    if chosen.numel():
        tokens, mask = left_padded(text.flatten(0, 1)[chosen], seen.flatten(0, 1)[chosen])
        hidden = policy.hidden(tokens, mask, prompt_positions(mask))[:, -1]
        own = Legal(legal.first, legal.mask[chosen], None if legal.within is None else legal.within[chosen])
        found, _, _ = distribution(policy.head_for("catalogue"), hidden, own, 1.0, "catalogue")
        log_probs[chosen] = found
    return legal.first, log_probs.unflatten(0, live.shape)


def _nothing(prompts: int, width: int, device: torch.device) -> Ranking:
    """A ranking without items: none is outside the list that scores higher."""
    items = torch.full((prompts, width), -1, device=device)
    lowest = torch.full((prompts, width), float("-inf"), device=device)
    return Ranking(items, lowest, lowest[:, 0])


def _joined(parts: Sequence[Ranking]) -> Ranking:
    """Rankings of different prompts as one."""
    bounds = [part.bound for part in parts if part.bound is not None]
    items, scores = (torch.cat([getattr(part, name) for part in parts]) for name in ("items", "scores"))
    return Ranking(items, scores, torch.cat(bounds))


def _even(blocks: Sequence[Tensor]) -> list[Tensor]:
    """Blocks [P, T] of any length, padded on the right to the longest."""
    longest = max(block.shape[1] for block in blocks)
    return [functional.pad(block, (0, longest - block.shape[1])) for block in blocks]
