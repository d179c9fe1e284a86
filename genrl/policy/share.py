"""How completions share the computation of their prompt: three ways, and a cost model that picks one."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from genrl.batches import Requests
from genrl.errors import ConfigError, UnsupportedError
from genrl.layouts.base import Legal
from genrl.ops import looks
from genrl.policy.attention import (
    ReservedLayer,
    SharedLayer,
    SharedPrompt,
    branch_mask,
    grown_mask,
    left_padded,
    model_cache,
    prompt_positions,
    right_padded,
    shared_prompts,
    tree_cache,
)
from genrl.policy.sharding import sharded

if TYPE_CHECKING:
    from genrl.policy.model import Head, Policy, Read

T = TypeVar("T")
Say = Callable[["Hidden"], T]
SayBoth = Callable[["Hidden", "Hidden"], T]
"""What `grow` and `follow` are given, see `genrl.policy.protocol`."""
WAYS = ("tree", "expand", "naive")
"""`tree`: all completions of a prompt in one row behind it, kept apart by a mask. `expand`: the prompt is computed once
and each completion has a row behind it, which reads the prompt's keys and values or a copy of them. `naive`: each
completion in a row of its own behind a copy of its prompt; the reference that the others must equal, and the way of
models that the others do not fit."""

PAIR = 1.6
"""Cost of one multiply-add inside attention, in multiply-adds of a weight matrix."""
COPY = 24.0
"""Cost of one number copied into or inside a cache, in the same unit. Both were set by hand so that the cheapest way
is the one measured fastest on a CPU (`python tools/bench.py --only ways`); docs/performance.md has the table."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch of completions."""

    prompts: int
    group: int
    context: int
    """Tokens of the longest prompt."""
    depth: int
    """Tokens per completion that go through the model (its last one need not)."""


@dataclass(frozen=True)
class Hidden:
    """What a language model says of the next token: hidden states [..., H] and rows of its output head."""

    head: Head
    states: Tensor
    narrow = False

    @property
    def first(self) -> int:
        """Token id of the head's first row."""
        return self.head.first

    def logits(self, legal: Legal | None) -> Tensor:
        """See `Next.logits`."""
        if legal is None:
            return self.head.logits(self.states, self.head.first, len(self.head.weight))
        if legal.tokens is not None:
            return legal.among(self.logits(None), self.first)
        return self.head.logits(self.states, legal.first, legal.mask.shape[-1])

    def __getitem__(self, index: Any) -> Hidden:  # noqa: ANN401 (any index of tensors)
        return Hidden(self.head, self.states[index])

    def __len__(self) -> int:
        return len(self.states)


def cost(way: str, shape: Shape, policy: Policy, *, decode: bool) -> float:
    """Estimated work in multiply-adds of weight matrices.

    Args:
        way: one of `WAYS`.
        shape: sizes of the batch.
        policy: gives the work per token, per pair of tokens in attention and per cached token.
        decode: token after token with a cache (sampling, beams) instead of all at once (scoring).
    """
    p, g, length, depth = shape.prompts, shape.group, shape.context, shape.depth
    steps = range(1, depth + 1)
    if decode:
        tokens, pairs, copies = {
            "tree": (
                p * (length + g * depth),
                p * length**2 + p * g * sum(length + g * t for t in steps),
                p * sum(length + g * t for t in steps),
            ),
            "expand": (
                p * (length + g * depth),
                p * length**2 + p * g * sum(length + t for t in steps),
                p * g * (length + sum(length + t for t in steps)),
            ),
            "naive": (
                p * length + p * g * sum(length + t for t in steps),
                p * length**2 + p * g * sum((length + t) ** 2 for t in steps),
                0,
            ),
        }[way]
    else:
        tokens, pairs, copies = {
            "tree": (p * (length + g * depth), p * (length + g * depth) ** 2, 0),
            "expand": (
                p * (length + g * depth),
                p * length**2 + p * g * depth * (length + depth),
                2 * p * g * (length + depth),
            ),
            "naive": (p * g * (length + depth), p * g * (length + depth) ** 2, 0),
        }[way]
    work = policy.work
    return tokens * work.token + PAIR * pairs * work.pair + COPY * copies * work.cached


def choose(policy: Policy, shape: Shape, *, decode: bool, ways: tuple[str, ...] = WAYS) -> str:
    """The way to compute a batch: the one that `policy.branching` names, or the cheapest one that the model allows.

    Args:
        policy: says what its layers can do.
        shape: sizes of the batch.
        decode: token after token with a cache.
        ways: those that there are; one that is asked for and not among them gives way to the cheapest of these.

    Raises:
        ConfigError: if prompt and completion are longer than the model's positions.
        UnsupportedError: if the way that was asked for would give wrong results with this model.
    """
    longest = shape.context + shape.depth
    if policy.positions is not None and longest > policy.positions:
        raise ConfigError(
            f"a prompt of {shape.context} tokens with {shape.depth} more does not fit into the {policy.positions} "
            f"positions of model {type(policy.base).__name__}. Lower data.max_history."
        )
    if policy.branching == "naive":
        return "naive"
    refused = wrong_ways(policy, longest)
    if policy.checkpointing:
        cached = ("tree", "expand") if decode else ("expand",)
        refused |= dict.fromkeys(cached, "activation checkpointing drops the cache that it needs")
    if policy.branching == "auto" or policy.branching not in ways:
        return min((way for way in ways if way not in refused), key=lambda way: cost(way, shape, policy, decode=decode))
    if policy.branching in refused:
        raise UnsupportedError(
            f"trainer.branching={policy.branching} is wrong for this model: {refused[policy.branching]}. "
            f"Use trainer.branching=auto, which takes the fastest way that is right."
        )
    return policy.branching


def wrong_ways(policy: Policy, longest: int) -> dict[str, str]:
    """Ways that a model does not compute rightly for sequences of `longest` tokens, with the reason."""
    if policy.device not in policy.refused_ways:
        policy.refused_ways[policy.device] = _probe(policy)
    refused = dict(policy.refused_ways[policy.device])
    if policy.window is not None and longest > policy.window:
        reason = f"its layers see {policy.window} tokens and the sequence has {longest}"
        refused = {"tree": reason, "share": reason} | refused
    for way in WAYS:
        if policy.branching == "auto" and way in refused and way not in policy.noticed:
            policy.noticed.add(way)
            name = type(policy.base).__name__
            warnings.warn(f"{name} is run without the way {way!r}: {refused[way]}.", stacklevel=2)
    return refused


@torch.no_grad()
def _probe(policy: Policy) -> dict[str, str]:
    """Run two short completions in every way; those that differ from plain rows are refused, with the reason.

    How far rounding alone takes a model depends on its precision and depth, so two differences from the plain rows are
    measured beside it: that of the same rows in passes of another shape, where nothing but rounding differs, and that
    of rows where one completion sees the other, which is the mistake looked for. A way is right if its own difference
    is nearer to the first than to the second, as ratios: below their geometric mean.
    """
    device = policy.device
    tokens = torch.arange(11, device=device)[None] % policy.base.config.get_text_config().vocab_size
    prompt, written = tokens[:, :3], tokens[0, 3:7].view(2, 2)
    mask = torch.ones_like(prompt, dtype=torch.bool)
    rows, seen, positions = alone(prompt, mask, written[None])

    def plain(tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=device).expand(len(tokens), -1)
        return policy(tokens, torch.ones_like(tokens, dtype=torch.bool), places, lambda hidden, _: hidden).float()

    def followed(way: Callable[..., Tensor]) -> Tensor:
        ahead = torch.cat([written, written[:, :1]], dim=1)  # the last token does not go through the model
        everything = torch.ones_like(ahead, dtype=torch.bool)
        return way(policy, prompt, mask, ahead, everything, lambda _, inner: inner.states, "legal")

    def shared() -> Tensor:
        growth = Shared(policy, prompt, mask, 2, 2, "legal")
        growth.begin(lambda _: None)
        steps = [growth.extend(column[None], lambda said: said.states) for column in written.unbind(1)]
        return torch.stack(steps, dim=1)

    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            wanted = policy(rows, seen, positions, lambda hidden, _: hidden)
            longer = torch.cat([plain(torch.cat([row[None], tokens[:, 7:]], dim=1)) for row in rows])[:, 3:5]
            leaking = plain(tokens[:, :7])[:, 3:].view_as(longer)
            known = wanted[:, 3:].float()
            precision = max(torch.finfo(wanted.dtype).eps, torch.finfo(torch.float32).eps)  # that of norms and softmax
            floor = precision * policy.base.config.get_text_config().num_hidden_layers ** 0.5
            rounding = max(_relative(longer, known), floor)
            limit = (rounding * max(rounding, _relative(leaking, known))) ** 0.5
            ways: dict[str, Callable[[], Tensor]]
            ways = {"tree": partial(followed, _in_tree), "expand": partial(followed, _in_rows), "share": shared}
            reasons = {name: _difference(way, known, limit) for name, way in ways.items()}
    finally:
        for module, training in modes.items():
            module.training = training
    return {name: reason for name, reason in reasons.items() if reason}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def _difference(way: Callable[[], Tensor], wanted: Tensor, limit: float) -> str:
    """Why a way is not right for a model; empty if it is."""
    try:
        relative = _relative(way(), wanted)
    except Exception as error:  # whatever a foreign architecture answers to a mask or a cache that it does not know
        return f"its layers refuse it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return "" if relative <= limit else f"its layers do not keep completions apart (relative error {relative:.2g})"


class Branches(ABC):
    """Completions that grow behind their prompts; see `Growth`, which says what it takes.

    Args:
        policy: the model.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        width: slots per level, at most.
        depth: tokens that will be added to each slot, at most.
        head: rows of it, see `Policy.forward`.
        apart: whether slots end at different lengths.
    """

    def __init__(
        self, policy: Policy, tokens: Tensor, mask: Tensor, width: int, depth: int, head: str, *, apart: bool = False
    ) -> None:
        self.policy = policy
        self.tokens = tokens
        self.mask = mask
        self.width = width
        self.room = depth
        self.head = head
        self.apart = apart
        self.lengths = mask.sum(1)
        self.depth = 0
        self.owners = torch.arange(len(tokens), device=tokens.device)
        """Prompt [n] of each row."""
        self.places = self.owners[:, None]
        """[P, W] where each slot of the last level is computed: its column in the tree, or its row."""
        self.partial = False
        """Whether slots of the last level were left out."""

    @abstractmethod
    def begin(self, say: Say[T]) -> T:
        """See `Growth.begin`."""

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        """See `Growth.extend`; where the device runs ahead of the host, slots leave only if they end apart."""
        if live is not None and live.device.type != "cpu" and not self.apart:
            live = None  # how many are left would not be known in time
        if self.partial and live is None:
            raise ValueError("slots were left out before; say which of the new ones are live")
        width = tokens.shape[1]
        moved = parents is not None or self.places.shape[1] != width
        above = self.places.expand(-1, width) if parents is None or not self.depth else self.places.gather(1, parents)
        found = self._extend(tokens, say, above, moved, live)
        self.depth += 1
        return found

    @abstractmethod
    def _extend(self, tokens: Tensor, say: Say[T], above: Tensor, moved: bool, live: Tensor | None) -> T:
        """`extend` behind the places `above` [P, W]; they are those of the last level unless `moved`."""

    def _idle(self, tokens: Tensor, say: Say[T]) -> T:
        """An answer for slots of which none is live, nor will be any behind them."""
        self.places = torch.zeros_like(tokens)
        count, nothing = tokens.numel(), tokens.flatten()[:, None][:, :0]
        return self.policy(
            nothing,
            None,
            nothing,
            lambda hidden, head: say(Hidden(head, hidden.new_zeros(count, hidden.shape[-1]))),
            self.head,
        )


class Tree(Branches):
    """All slots of a prompt in one row: nothing is copied, a mask shows each slot its ancestors."""

    def begin(self, say: Say[T]) -> T:
        self.tokens, self.mask = right_padded(self.tokens, self.mask)
        self.cache = tree_cache(self.policy.base.config, self.tokens.shape[1] + self.width * self.room)
        self.seen = self.mask[:, None]
        self.places = torch.zeros_like(self.places)
        return _prefill(self.policy, self.tokens, self.lengths, say, self.head, self.cache)

    def _extend(self, tokens: Tensor, say: Say[T], above: Tensor, moved: bool, live: Tensor | None) -> T:
        """Rows stay rectangular, so each prompt computes as many slots as the one with most."""
        prompts, width = tokens.shape
        count = width if live is None else int(live.sum(1).max())
        self.partial = count < width
        if count == 0:
            return self._idle(tokens, say)
        columns = torch.arange(count, device=tokens.device).expand(prompts, -1)
        self.places = columns
        if live is not None and self.partial:
            order = (~live).byte().argsort(dim=1, stable=True)[:, :count]
            tokens, above = tokens.gather(1, order), above.gather(1, order)
            self.places = columns.new_zeros(prompts, width).scatter(1, order, columns)

        def placed(hidden: Tensor, head: Head) -> T:
            if self.partial:
                whole = hidden.new_zeros(prompts, width, hidden.shape[-1])
                hidden = whole.scatter(1, order[:, :, None].expand_as(hidden), hidden)
            return say(Hidden(head, hidden.flatten(0, 1)))

        self.seen = grown_mask(self.seen, above if moved or self.partial else None)
        positions = (self.lengths[:, None] + self.depth).expand(-1, count)
        return self.policy(tokens, self.seen[:, None], positions, placed, self.head, self.cache)


class Rows(Branches):
    """A row per slot. Those that are left out leave together, not one by one: until then they are computed along."""

    fill = 7 / 8
    """Share of the rows that stays when the others leave: a copy of the rest costs about as much as a token of it."""

    def _extend(self, tokens: Tensor, say: Say[T], above: Tensor, moved: bool, live: Tensor | None) -> T:
        count = tokens.numel()
        if live is None:
            self.wanted = torch.arange(count, device=tokens.device)
        elif moved or not self.depth or looks(self.depth, live.device):  # who is left out stays out
            self.wanted = live.flatten().nonzero()[:, 0]
        wanted = self.wanted
        self.partial = len(wanted) < count
        if len(wanted) == 0:
            return self._idle(tokens, say)
        rows = above.flatten()[wanted]
        if moved or len(rows) <= self.fill * len(self.owners):
            self.owners = self.owners[rows]
            self._keep(rows, tokens.shape[1] if live is None else 0)
            rows = torch.arange(len(rows), device=rows.device)
        self.places = above.new_zeros(count).index_copy(0, wanted, rows).view_as(tokens)
        fed = tokens.new_zeros(len(self.owners)).index_copy(0, rows, tokens.flatten()[wanted])

        def placed(hidden: Tensor, head: Head) -> T:
            last = hidden[:, -1]
            if len(rows) < max(count, len(last)):
                last = last.new_zeros(count, last.shape[-1]).index_copy(0, wanted, last[rows])
            return say(Hidden(head, last))

        return self._feed(fed, placed)

    @abstractmethod
    def _keep(self, rows: Tensor, width: int) -> None:
        """Go on with some of the rows [n], each as often as it is named: `width` for each prompt, 0 if that differs."""

    @abstractmethod
    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        """Read hidden states [n, t, H], the last of them behind one more token [n] for each row."""


class Copied(Rows):
    """A copy of the prompt's keys and values per row."""

    def begin(self, say: Say[T]) -> T:
        room = self.tokens.shape[1] + self.room
        self.cache = model_cache(self.policy.base.config, partial(ReservedLayer, room))
        self.seen = self.mask
        positions = prompt_positions(self.mask)
        return self.policy(self.tokens, self.mask, positions, _last(say), self.head, self.cache)

    def _keep(self, rows: Tensor, width: int) -> None:
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]

    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], dim=1)
        positions = (self.lengths[self.owners] + self.depth)[:, None]
        return self.policy(tokens[:, None], self.seen, positions, read, self.head, self.cache)


class Shared(Rows):
    """One copy of each prompt's keys and values for all its rows."""

    def begin(self, say: Say[T]) -> T:
        tokens, mask = right_padded(self.tokens, self.mask)
        cache = tree_cache(self.policy.base.config, tokens.shape[1])
        found, dtype = _prefill(
            self.policy, tokens, self.lengths, lambda said: (say(said), said.states.dtype), self.head, cache
        )
        self.prompts = SharedPrompt(cache, mask, dtype)
        self.cache = tree_cache(self.policy.base.config, self.room)
        return found

    def _keep(self, rows: Tensor, width: int) -> None:
        """Prompts stay where they are."""
        self.prompts.serve(self.owners, width)
        if self.depth:
            self.cache.batch_select_indices(rows)

    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        positions = (self.lengths[self.owners] + self.depth)[:, None]
        with shared_prompts(self.policy.decoder.config):
            return self.policy(tokens[:, None], None, positions, read, self.head, self.cache, shared=self.prompts)


class Naive(Rows):
    """Every row computed anew from its prompt on: no cache, no mask of our own."""

    fill = 1.0

    def begin(self, say: Say[T]) -> T:
        self.grown = self.tokens[:, :0]
        return self.policy(self.tokens, self.mask, prompt_positions(self.mask), _last(say), self.head)

    def _keep(self, rows: Tensor, width: int) -> None:
        self.grown = self.grown[rows]

    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        self.grown = torch.cat([self.grown, tokens[:, None]], dim=1)
        return self.policy(
            *alone(self.tokens[self.owners], self.mask[self.owners], self.grown[:, None]), read, self.head
        )


def _last(say: Say[T]) -> Read[T]:
    return lambda hidden, head: say(Hidden(head, hidden[:, -1]))


def _prefill(
    policy: Policy, tokens: Tensor, lengths: Tensor, say: Callable[[Hidden], T], head: str, cache: DynamicCache
) -> T:
    """Fill a cache with right-padded prompts [P, L]. Causal attention needs no mask: no token sees what follows."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)

    def last(hidden: Tensor, rows: Head) -> T:
        places = (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return say(Hidden(rows, hidden.gather(1, places)[:, 0]))

    return policy(tokens, None, positions, last, head, cache)


def alone(tokens: Tensor, mask: Tensor, completions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a copy of the prompt and one completion each.

    Args:
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        completions: [P, W, D].

    Returns:
        tokens, mask and positions, each [P * W, L + D].
    """
    _, width, depth = completions.shape
    rows = torch.cat([tokens.repeat_interleave(width, dim=0), completions.flatten(0, 1)], dim=1)
    real = mask.repeat_interleave(width, dim=0)
    real = torch.cat([real, real.new_ones(len(real), depth)], dim=1)
    return rows, real, prompt_positions(real)


def grow(
    policy: Policy, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False
) -> Branches:
    """`Generative.grow` of a language model, in the cheapest way; slots that end apart have no tree."""
    tokens, mask = left_padded(requests.tokens, requests.mask)
    shape = Shape(len(tokens), width, tokens.shape[1], depth)
    way = choose(policy, shape, decode=True, ways=("expand", "naive") if apart else WAYS)
    if way == "expand" and "share" in wrong_ways(policy, shape.context + depth):
        way = "copy"
    kinds: dict[str, Callable[..., Branches]] = {"tree": Tree, "expand": Shared, "copy": Copied, "naive": Naive}
    return kinds[way](policy, tokens, mask, width, depth, rows, apart=apart)


def follow(
    policy: Policy, requests: Requests, written: Tensor, chosen: Tensor, say: SayBoth[T], rows: str = "legal"
) -> T:
    """`Generative.follow` of a language model, in the cheapest way."""
    tokens, mask = left_padded(requests.tokens, requests.mask)
    shape = Shape(len(tokens), len(written) // len(tokens), tokens.shape[1], written.shape[1] - 1)
    ways = ("tree", "naive") if sharded(policy) else WAYS  # one pass, whatever the rows of the other ranks are like
    way = {"tree": _in_tree, "expand": _in_rows, "naive": _plainly}[choose(policy, shape, decode=False, ways=ways)]
    return way(policy, tokens, mask, written, chosen, say, rows)


def _plainly(
    policy: Policy, tokens: Tensor, mask: Tensor, written: Tensor, chosen: Tensor, say: SayBoth[T], rows: str
) -> T:
    """Each completion behind a copy of its prompt."""
    context = tokens.shape[1]
    inputs = alone(tokens, mask, written[:, :-1].unflatten(0, (len(tokens), -1)))
    return policy(
        *inputs,
        lambda hidden, head: say(Hidden(head, hidden[:, context - 1]), Hidden(head, hidden[:, context:])),
        rows,
    )


def _in_rows(
    policy: Policy, tokens: Tensor, mask: Tensor, written: Tensor, chosen: Tensor, say: SayBoth[T], rows: str
) -> T:
    """Completions behind copies of what their prompt left in a cache."""
    context, group = tokens.shape[1], len(written) // len(tokens)
    cache = model_cache(policy.base.config, SharedLayer)
    first = policy(tokens, mask, prompt_positions(mask), lambda hidden, _: hidden[:, -1], cache=cache)
    cache.batch_repeat_interleave(group)
    real = torch.cat([mask.repeat_interleave(group, dim=0), torch.ones_like(chosen[:, 1:])], dim=1)
    positions = prompt_positions(real)[:, context:]
    return policy(
        written[:, :-1],
        real,
        positions,
        lambda inner, head: say(Hidden(head, first), Hidden(head, inner)),
        rows,
        cache,
    )


def _in_tree(
    policy: Policy, tokens: Tensor, mask: Tensor, written: Tensor, chosen: Tensor, say: SayBoth[T], rows: str
) -> T:
    """Prompts with all tokens of all their completions that a chosen token stands behind, in one row."""
    (prompts, context), depth = tokens.shape, written.shape[1] - 1
    needed = (chosen[:, 1:].flip(1).cumsum(1).flip(1) > 0).view(prompts, -1)
    count = int(needed.sum(1).max()) if depth else 0
    order = (~needed).byte().argsort(dim=1, stable=True)[:, :count]
    branch, place = order // max(1, depth), order % max(1, depth)
    row = torch.cat([tokens, written[:, :-1].reshape(prompts, -1).gather(1, order)], dim=1)
    positions = torch.cat([prompt_positions(mask), mask.sum(1, keepdim=True) + place], 1)

    def spread(hidden: Tensor, head: Head) -> T:
        whole = hidden.new_zeros(*needed.shape, hidden.shape[-1])
        inner = whole.scatter(1, order[:, :, None].expand(-1, -1, hidden.shape[-1]), hidden[:, context:])
        return say(
            Hidden(head, hidden[:, context - 1]), Hidden(head, inner.view(*chosen[:, 1:].shape, hidden.shape[-1]))
        )

    return policy(row, branch_mask(mask, branch, place), positions, spread, rows)
