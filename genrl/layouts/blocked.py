"""A completion is a SID with thinking: one think block for each of its K tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from genrl.batches import Requests, State
from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.layouts.base import BROKEN, ENDED, LAYOUTS, Kind, Layout, Legal, Reading, Words
from genrl.layouts.items import Items, ItemState
from genrl.layouts.sid import SidLayout, SidLayoutConfig

LEVELS = 8
"""Most SID levels of a layout with a block for each."""


@dataclass(frozen=True, slots=True)
class BlockedState(ItemState):
    """A state with thinking."""

    place: Tensor
    """[n] int64 place in the form: which block or SID token is due."""
    total: Tensor
    """[n] int64 words of all blocks so far."""
    used: Tensor
    """[n] int64 words of this block so far."""


@dataclass(frozen=True)
class BlockedLayoutConfig:
    """Options of the layout `blocked`."""

    order: Literal["tail", "interleaved"] = "tail"
    """All blocks before the SID (SAPO, arXiv:2605.17648), or each block before its own SID token."""
    budget: int = 48
    """Words (tokens) per block at most."""
    minimum: int = 1
    """Words per block at least."""
    total: int | None = None
    """Words of all blocks at most; null: K x budget. What the later blocks need at least is kept for them."""
    on_budget: Literal["close", "fail"] = "close"
    """A block that has used its budget is closed, or ends the completion without an item (the authors' code)."""
    add_tokens: bool = True
    """Add `<think>` and `</think>` to a tokenizer that lacks them; false: refuse such a tokenizer."""

    def __post_init__(self) -> None:
        if self.minimum < 0:
            raise ConfigError(f"layout.minimum={self.minimum} must be 0 or more words per block.")
        least = self.minimum + (self.on_budget == "fail")
        if self.budget < max(1, least):
            raise ConfigError(
                f"layout.budget={self.budget} is smaller than the {max(1, least)} words that a block needs with "
                f"layout.minimum={self.minimum} and layout.on_budget={self.on_budget}. Raise layout.budget or lower "
                f"layout.minimum."
            )


@LAYOUTS.register(
    "blocked", config=BlockedLayoutConfig, title="Think blocks, one for each SID token", paper="SAPO, arXiv:2605.17648"
)
class BlockedLayout(Layout):
    """K think blocks and K constrained SID tokens; block k and token k are step k.

    A block is `<think>`, words, `</think>` and, if the tokenizer has a token for it, a line break. `tail` writes all
    blocks and then the SID, `interleaved` each block before its SID token. Only words, a `</think>` before the budget
    is used up and SID tokens with a choice are the policy's; all else is of the form.

    Sites 0 .. K-1 are SID levels, K a word, K+1 a word or `</think>`, K+2 what is of the form.

    Raises:
        ConfigError: if the SIDs have more than eight levels, the tokenizer has no words, or `total` is too small for K
            blocks.
    """

    in_step = False
    writes_text = True

    def __init__(self, config: BlockedLayoutConfig, *, catalogue: Items, words: Words) -> None:
        levels = catalogue.levels
        if levels > LEVELS:
            raise ConfigError(
                f"layout blocked writes 1 to {LEVELS} blocks, but the SID table has {levels} levels. Lower sid.levels."
            )
        if not bool(words.legal.any()):
            raise ConfigError("layout blocked has no words to think with: the tokenizer has only special tokens.")
        self.config = config
        self.words = words
        self.catalogue = catalogue
        self.tokens = catalogue.tokens
        self.codes = catalogue.codes
        self.completions = catalogue.distinct
        self.writes_between = config.order == "interleaved" and levels > 1
        self.steps = levels
        self.total = levels * config.budget if config.total is None else config.total
        self.kept = config.minimum + (config.on_budget == "fail")
        """Words of the total that are kept for each block to come."""
        least = levels * (max(1, config.minimum) + (config.on_budget == "fail"))
        if self.total < least:
            raise ConfigError(
                f"layout.total={self.total} is smaller than the {least} words that {levels} blocks need with "
                f"layout.minimum={config.minimum}. Set it to {least} or more, or to null."
            )
        form = _form(config.order, levels, words.line_break is not None)
        self.length = len(form) + min(self.total, levels * config.budget)
        self.open, self.word, self.fixed = levels, levels + 1, levels + 2
        item: Kind = "item"
        self.kinds = (*(item,) * levels, "word", "word", "form")
        self.widest = max(len(words.legal), *self.tokens.sizes)
        device = self.codes.device
        marks = {_OPEN: words.opening, _WORD: words.closing, _BREAK: words.line_break}
        self._kinds = torch.tensor([kind for kind, _ in form] + [_END, _FAILED], device=device)
        self._steps = torch.tensor([step for _, step in form] + [-1, -1], device=device)
        self._marks = torch.tensor([marks.get(kind) or 0 for kind in self._kinds.tolist()], device=device)
        self._closing = words.legal.clone().to(device)
        self._closing[words.closing] = True
        self._opened = words.legal.to(device)

    @property
    @override
    def plain(self) -> SidLayout:
        return SidLayout(SidLayoutConfig(), catalogue=self.catalogue)

    @override
    def to(self, device: str | torch.device) -> BlockedLayout:
        return self._with(self.catalogue.to(device)) if torch.device(device) != self.codes.device else self

    @override
    def only(self, keep: Tensor) -> BlockedLayout:
        return self._with(self.catalogue.only(keep))

    def _with(self, catalogue: Items) -> BlockedLayout:
        return BlockedLayout(self.config, catalogue=catalogue, words=self.words)

    @override
    def start(self, requests: int, group: int = 1) -> BlockedState:
        owner = torch.arange(requests, device=self.codes.device).repeat_interleave(group)
        zero = torch.zeros_like(owner)
        return BlockedState(self._site(zero, zero, zero), owner, zero, zero, zero, zero)

    def _site(self, place: Tensor, total: Tensor, used: Tensor) -> Tensor:
        """What kind of token comes next."""
        kind = self._kinds[place]
        site = torch.where(kind == _SID, self._steps[place], self.fixed)
        words = torch.where(used < self.config.minimum, self.open, self.word)
        site = torch.where((kind == _WORD) & (used < self._limit(place, total, used)), words, site)
        return torch.where(kind >= _END, ENDED, site)

    @override
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        """Children of the node, or words; one row of the mask stands for all states where it is the same."""
        assert isinstance(state, BlockedState)
        if site < self.steps:
            return self.catalogue.legal(site, state.node, state.owner, requests)
        if site == self.fixed:
            return Legal.fixed(self._marks[state.place])
        return Legal((self._closing if site == self.word else self._opened)[None])

    @override
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> BlockedState:
        assert isinstance(state, BlockedState)
        place, total, used = state.place, state.total, state.used
        kind = self._kinds[place]
        closes = (kind == _WORD) & (tokens == self.words.closing) & (used >= self.config.minimum)
        inside = (tokens >= 0) & (tokens < len(self._opened))
        limit = self._limit(place, total, used)
        speaks = (kind == _WORD) & inside & self._opened[torch.where(inside, tokens, 0)] & (used < limit)
        follows = ((kind == _OPEN) | (kind == _BREAK)) & (tokens == self._marks[place])
        child = torch.full_like(state.node, -1)
        for level in range(self.steps):
            here = state.site == level
            if here.device.type != "cpu" or bool(here.any()):  # elsewhere a look would be a wait
                found = self.catalogue.child(level, torch.where(here, state.node, 0), tokens)
                child = torch.where(here, found, child)
        node = torch.where(child >= 0, child, state.node)
        used, total = used + speaks.long(), total + speaks.long()
        if self.config.on_budget == "fail":
            place = torch.where(speaks & (used >= limit), len(self._kinds) - 1, place)
        moves = closes | follows | (child >= 0)
        place = place + moves.long()
        used = torch.where(moves, 0, used)
        site_behind = torch.where(moves | speaks, self._site(place, total, used), BROKEN)
        stays = state.site < 0
        return BlockedState(
            site=torch.where(stays, state.site, site_behind),
            owner=state.owner,
            node=node,
            place=torch.where(stays, state.place, place),
            total=total,
            used=used,
        )

    @override
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        """What completions say; steps of one that breaks off or failed have no code."""
        assert isinstance(states, BlockedState)
        written = states.site >= 0
        steps = torch.where(written, self._steps[states.place], -1)
        decides = written & (states.site < self.steps)
        last = states.site == self.steps - 1  # the token that ends a completion well
        end = last.byte().argmax(1, keepdim=True)
        leaves = self.catalogue.child(self.steps - 1, states.node.gather(1, end)[:, 0], tokens.gather(1, end)[:, 0])
        whole = last.any(1) & (leaves >= 0)
        rows, columns = (decides & whole[:, None]).nonzero().unbind(1)
        sites = states.site[rows, columns]
        codes = tokens.new_full((len(tokens), self.steps), -1)
        codes[rows, sites] = tokens[rows, columns] - self.catalogue.first[sites]
        owner = states.owner.gather(1, end)[:, 0]
        items = self.catalogue.named(torch.where(whole, leaves, -1)[:, None], owner, requests)
        chosen = (tokens == self.words.closing) & (states.site == self.word)
        closed = torch.stack([(chosen & (steps == step)).any(1) for step in range(self.steps)], dim=1)
        return Reading(steps, decides.long() - 1, codes, items, closed)

    @override
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        """Completions with given thinking; what is beyond the budget is cut off.

        Raises:
            DataError: naming the first trace with another number of blocks, a block below the minimum or a token that
                is no word.
        """
        if texts is None:
            raise UnsupportedError(
                "layout blocked has no completion for an item alone, because thinking belongs to it: give texts, or "
                "use the layout `sid`."
            )
        sids = self.catalogue.render(items[:, 0]).tolist()
        rows = [self._written(number, *pair) for number, pair in enumerate(zip(texts, sids, strict=True))]
        length = max((len(row) for row in rows), default=1)
        padded = [row + [0] * (length - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64, device=self._kinds.device).view(len(rows), length)
        broken = (self.replay(tokens).site == BROKEN).any(1)
        if bool(broken.any()):
            raise DataError(f"trace {int(broken.nonzero()[0])} holds a token that no block may hold.")
        return tokens

    def _written(self, number: int, trace: Sequence[Sequence[int]], sid: list[int]) -> list[int]:
        """One completion as token ids."""
        if len(trace) != self.steps:
            raise DataError(f"trace {number} has {len(trace)} blocks, SIDs have {self.steps} levels.")
        words, config = self.words, self.config
        breaks = [] if words.line_break is None else [words.line_break]
        row: list[int] = []
        left = self.total
        for step, block in enumerate(trace):
            room = min(config.budget, left - self.kept * (self.steps - 1 - step))
            kept = list(block[: room - (config.on_budget == "fail")])
            if len(kept) < config.minimum:
                raise DataError(
                    f"block {step + 1} of trace {number} has {len(kept)} words, layout.minimum is {config.minimum}. "
                    f"Lower it, or leave the trace out."
                )
            left -= len(kept)
            row += [words.opening, *kept, words.closing, *breaks]
            if config.order == "interleaved":
                row.append(sid[step])
        return row + (sid if config.order == "tail" else [])

    @override
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        assert isinstance(state, BlockedState)
        whole = (state.site == ENDED) & (self._kinds[state.place] == _END)
        return self.catalogue.rank(torch.where(whole, state.node, -1).view(scores.shape), scores, width, requests)

    @override
    def blocks(self, tokens: Tensor) -> list[list[int]]:
        """Words of each think block; one that was never closed ends with the completion."""
        blocks: list[list[int]] = []
        inside = False
        for token in tokens.tolist():
            if token == self.words.opening:
                blocks.append([])
                inside = True
            elif token == self.words.closing:
                inside = False
            elif inside:
                blocks[-1].append(token)
        return blocks

    def _limit(self, place: Tensor, total: Tensor, used: Tensor) -> Tensor:
        """Words that a block may have: its budget, as far as the blocks behind it keep what they need of the total."""
        later = self.steps - 1 - self._steps[place]
        return (self.total - (total - used) - self.kept * later).clamp(max=self.config.budget)


_OPEN, _WORD, _BREAK, _SID, _END, _FAILED = range(6)


def _form(order: str, levels: int, line_break: bool) -> list[tuple[int, int]]:
    """Kind and step of every place of a completion, words of a block being one place.

    Example:
        >>> [kind for kind, _ in _form("interleaved", 2, False)]
        [0, 1, 3, 0, 1, 3]
    """
    block = [_OPEN, _WORD, _BREAK] if line_break else [_OPEN, _WORD]
    blocks = [[(kind, step) for kind in block] for step in range(levels)]
    sid = [(_SID, step) for step in range(levels)]
    if order == "tail":
        return [place for part in blocks for place in part] + sid
    return [place for step in range(levels) for place in (*blocks[step], sid[step])]
