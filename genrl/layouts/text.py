"""A slate in words: the titles of several items, a line each, by a trie over title tokens or written freely."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import perm
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Requests, State
from genrl.layouts.base import BROKEN, ENDED, Kind, Layout, Legal, Reading
from genrl.layouts.items import ItemState, check_enough, check_left, check_slates, cut
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.layouts.titles import LONGEST, Titles
from genrl.options import option


@dataclass(frozen=True)
class TextConfig:
    """How items are named in words."""

    show: list[str] = field(default_factory=lambda: ["title"])
    """Columns of a name, joined by " | ": title, category and any of `data.columns.attributes`."""
    tokens: int = option(LONGEST, ge=1)
    """Tokens of a name at most; longer ones are cut."""
    constrain: bool = True
    """Write names of the items that a request may get and nothing else; false: any words, of which each line that is
    the name of an item stands for it."""
    invalid: Literal["null", "discard"] = "null"
    """Free lines that name no item, or one a second time: `null` keeps their place in the slate, without an item;
    `discard` leaves them out, and the items behind them move up."""


@dataclass(frozen=True, slots=True)
class TextState(ItemState):
    """A state inside a slate of lines; `node` is -1 where no name goes on as the line does."""

    place: Tensor
    """[n] int64 line that is written."""
    used: Tensor
    """[n] int64 tokens of it so far."""
    named: Tensor
    """[n, L] int64 catalogue row of each line, -1 where there is none."""


class TextSlate(Layout):
    """L names one behind the other, each closed by the end mark; step l is line l.

    There is one site: completions do not keep in step, and any of their tokens may be of any line. Constrained, a name
    is a path of the trie, and an item that was named is not legal again. Free, a line is any words, at least one and
    `tokens` at most.

    Completions are read as text: what decides is the line as it is decoded, without case and blanks. Beams know lines
    by their tokens, so there a name counts only as the tokenizer itself writes it.

    Raises:
        ConfigError: if there are fewer than L items.
        DataError: if a filter leaves fewer.
    """

    in_step = False
    in_words = True
    writes_slates = True

    def __init__(self, length: int, config: TextConfig, names: Titles) -> None:
        check_enough(names.distinct, length, names.keep is not None)
        self.config, self.names = config, names
        self.tokens, self.codes = names.sids.tokens, names.codes
        self.steps = self.items = length
        self.line = names.longest if config.constrain else config.tokens + 1
        """Tokens of the longest line, end mark included."""
        self.length = length * self.line
        item: Kind = "item"
        self.kinds = (item,)
        self.widest = names.widest if config.constrain else len(names.words)
        self.completions = perm(names.distinct, length)
        self.pausing = False
        """Whether completions end behind each line, to go on by `resume`."""
        self._checked: Requests | None = None

    @property
    @override
    def item_tokens(self) -> int:
        return self.line if self.pausing else self.length

    @property
    @override
    def item_names(self) -> tuple[str, ...]:
        return self.names.names.texts

    @property
    @override
    def settings(self) -> dict[str, Any]:
        text = {f"text.{name}": value for name, value in asdict(self.config).items()}
        return {"name": "slate", "length": self.items, "space": "text", **text}

    @property
    @override
    def plain(self) -> SidLayout:
        """One item by its SID: stage `align` learns to read histories."""
        return SidLayout(SidLayoutConfig(), catalogue=self.names.sids)

    @override
    def to(self, device: str | torch.device) -> TextSlate:
        return self if torch.device(device) == self.codes.device else self._with(self.names.to(device))

    @override
    def only(self, keep: Tensor) -> TextSlate:
        return self._with(self.names.only(keep))

    def _with(self, names: Titles) -> TextSlate:
        return TextSlate(self.items, self.config, names)

    @override
    def start(self, requests: int, group: int = 1) -> TextState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        zero = torch.zeros_like(owner)
        return TextState(zero, owner, zero, zero, zero, zero[:, None].expand(-1, self.items) - 1)

    @override
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        """Edges of the names that are not written yet; or any words, and the end mark behind one.

        Raises:
            DataError: naming the first request that has fewer items left than a slate holds.
        """
        assert isinstance(state, TextState)
        if self.config.constrain:
            if requests is not None and requests is not self._checked:
                check_left(self.names.left(requests), self.items)
                self._checked = requests
            return self.names.legal(0, state.node, state.owner, requests, state.named)
        room = state.used < self.line - 1
        mask = self.names.words & room[:, None]
        mask[:, self.names.end] = state.used > 0
        return Legal(mask)

    @override
    def narrow(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        return self.legal(site, state, requests)

    @override
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> TextState:
        assert isinstance(state, TextState)
        closes = (tokens == self.names.end) & (state.used > 0)
        node = self.names.child(0, state.node, tokens)
        item = self.names.item(node)
        again = (state.named == item[:, None]).any(1) & (item >= 0)
        if self.config.constrain:
            fits = (node >= 0) & ~again
        else:
            known = (tokens >= 0) & (tokens < len(self.names.words))
            word = known & self.names.words[torch.where(known, tokens, 0)]
            fits = closes | (word & (state.used < self.line - 1))
            item = item.masked_fill(again, -1)
        place = state.place + closes.long()
        behind = torch.where(place >= self.items, ENDED, 0)
        if self.pausing:
            behind = behind.masked_fill(closes, ENDED)
        at = torch.arange(self.items, device=tokens.device) == state.place[:, None]
        moved = TextState(
            site=torch.where(fits, behind, BROKEN),
            owner=state.owner,
            node=torch.where(closes, 0, node),
            place=place,
            used=torch.where(closes, 0, state.used + 1),
            named=torch.where(at & closes[:, None], item[:, None], state.named),
        )
        return state.where(state.site < 0, moved)

    @override
    def settled(self, state: State, site: int | None = None) -> Tensor:
        assert isinstance(state, TextState)
        if not self.config.constrain:
            return state.site < 0
        return (state.site < 0) | ((state.place == self.items - 1) & self.names.single(state.node))

    @override
    def told(self) -> list[str]:
        return self.names.names.lines()

    @override
    def pause(self) -> TextSlate:
        made = copy.copy(self)
        made.pausing, made._checked = True, None
        return made

    @override
    def resume(self, state: State) -> TextState:
        assert isinstance(state, TextState)
        going = (state.site == ENDED) & (state.place < self.items)
        return replace(state, site=torch.where(going, 0, state.site))

    @override
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        """What completions say; one that breaks off names no item at all."""
        assert isinstance(states, TextState)
        written = states.site >= 0
        steps = torch.where(written, states.place, -1)
        end = (written.sum(1, keepdim=True) - 1).clamp(min=0)
        rows = torch.arange(len(tokens), device=tokens.device)
        last = states.each(lambda value: value[rows, end[:, 0]])
        ended = self.advance(last, tokens.gather(1, end)[:, 0])
        whole = (ended.site == ENDED) & written.any(1)
        if self.config.constrain:
            items = torch.where(whole[:, None], ended.named, -1)
            return Reading(steps, steps, items, items)
        lines = self._parsed(tokens, steps, whole)
        if self.config.invalid == "null":
            return Reading(steps, steps, lines, lines)
        kept = lines >= 0
        order = (~kept).byte().argsort(dim=1, stable=True)
        moved = torch.where(kept, kept.long().cumsum(1) - 1, -1)
        places = torch.where(steps < 0, -1, moved.gather(1, steps.clamp(min=0)))
        items = lines.gather(1, order)
        return Reading(places, places, items, items)

    def _parsed(self, tokens: Tensor, steps: Tensor, whole: Tensor) -> Tensor:
        """Items [B, L] that free lines name; -1 for one that names none, or one that was named before."""
        found = torch.full((len(tokens), self.items), -1)
        for row, (ids, places, ends) in enumerate(zip(tokens.tolist(), steps.tolist(), whole.tolist(), strict=True)):
            lines: list[list[int]] = [[] for _ in range(self.items)]
            for token, place in zip(ids, places, strict=True):
                if place >= 0 and token != self.names.end:
                    lines[place].append(token)
            named: set[int] = set()
            for place, line in enumerate(lines if ends else ()):
                item = self.names.parse(self.names.decode(line))
                found[row, place] = -1 if item in named else item
                named.add(item)
        return found.to(tokens.device)

    @override
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        """Gold slates of catalogue rows [n, L].

        Raises:
            DataError: naming the first that has another length, a gap or an item twice.
        """
        check_slates(items, self.items)
        lines, sizes = self.names.render(items), self.names.lengths[items]
        real = (torch.arange(lines.shape[2], device=lines.device) < sizes[:, :, None]).flatten(1)
        order = (~real).byte().argsort(dim=1, stable=True)
        order = order[:, : int(sizes.sum(1).max()) if len(sizes) else 1]
        return lines.flatten(1).gather(1, order).masked_fill(~real.gather(1, order), 0)

    @override
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        """The items of the best slate of each request in their order, all with the slate's score.

        What a free line names beside the request's filter is left out, and the items behind it move up.
        """
        assert isinstance(state, TextState)
        ended = state.site == ENDED
        best = torch.where(ended[:, None], state.named, -1).unflatten(0, scores.shape)[:, 0]
        allowed = self.names.open_leaves(requests)
        if allowed is not None:  # free lines name what they like
            places = self.names.places[best.clamp(min=0)]
            best = best.masked_fill(~allowed.expand(len(best), -1).gather(1, places), -1)
        best = best.gather(1, (best < 0).byte().argsort(dim=1, stable=True))
        return cut(best, scores[:, :1].expand_as(best), width)

    @override
    def blocks(self, tokens: Tensor) -> list[list[int]]:
        """The lines of one completion [T] as token ids."""
        lines: list[list[int]] = [[]]
        for token in tokens.tolist():
            lines = [*lines, []] if token == self.names.end else [*lines[:-1], [*lines[-1], token]]
        return lines[: self.items]
