"""A completion is a SID with thinking: one think block for each of its K tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.layouts.base import LAYOUTS, Decoded, Layout, Legal, ThinkingLayout
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.sid.trie import Trie

LEVELS = 8
"""Most SID levels of a layout with a block for each."""


@dataclass(frozen=True)
class Words:
    """Tokens of thinking, as the tokenizer has them. All stand before the SID tokens."""

    opening: int
    """Id of `<think>`."""
    closing: int
    """Id of `</think>`."""
    line_break: int | None
    """Id of the token behind a block; None: the tokenizer has none for a line break."""
    legal: Tensor
    """[first SID token] bool: what may stand inside a block."""


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
        """Refuse budgets that no block fits into."""
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
class BlockedLayout(ThinkingLayout):
    """K think blocks and K constrained SID tokens; block k and token k are step k.

    A block is `<think>`, words, `</think>` and, if the tokenizer has a token for it, a line break. `tail` writes all
    blocks and then the SID, `interleaved` each block before its SID token. Only words, a `</think>` before the budget
    is used up and SID tokens with a choice are the policy's; all else is forced.

    A state holds four numbers: trie node, place in the form (which block or SID token is due), words of this block
    and words of all blocks. Sites 0 .. K-1 are SID levels, K a word, K+1 a word or `</think>`, K+2 what is forced.

    Args:
        config: options.
        trie: the catalogue's trie.
        first_ids: [K] token id of code 0 of each level.
        codes: [I, K] SID of each catalogue row.
        words: tokens of thinking.

    Raises:
        ConfigError: if the SIDs have more than eight levels, the tokenizer has no words, or `total` is too small for K
            blocks.
    """

    def __init__(
        self, config: BlockedLayoutConfig, *, trie: Trie, first_ids: tuple[int, ...], codes: Tensor, words: Words
    ) -> None:
        levels = trie.depth
        if levels > LEVELS:
            raise ConfigError(
                f"layout blocked writes 1 to {LEVELS} blocks, but the SID table has {levels} levels. Lower sid.levels."
            )
        if not bool(words.legal.any()):
            raise ConfigError("layout blocked has no words to think with: the tokenizer has only special tokens.")
        self.config = config
        self.words = words
        self._items: Layout = SidLayout(SidLayoutConfig(), trie=trie, first_ids=first_ids, codes=codes)
        self.first_ids = first_ids
        self.sizes = tuple(level.size for level in trie.levels)
        self.num_steps = levels
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
        device = codes.device
        self._kinds = torch.tensor([kind for kind, _ in form] + [_END, _FAILED], device=device)
        self._steps = torch.tensor([step for _, step in form] + [-1, -1], device=device)
        self._closing = words.legal.clone().to(device)
        self._closing[words.closing] = True
        self._opened = words.legal.to(device)
        nodes = max(level.offsets.numel() - 1 for level in trie.levels)
        self._radix = (len(form) + 2, self.total + 1, config.budget + 1)
        if max(nodes, trie.leaves) * self._radix[0] * self._radix[1] * self._radix[2] >= 2**62:
            raise ConfigError(f"layout.budget={config.budget} with layout.total={self.total} is too large to count.")

    @property
    def items(self) -> Layout:
        """The grammar of the SID alone."""
        return self._items

    def to(self, device: str) -> BlockedLayout:
        """The layout with its tables on another device."""
        moved = copy.copy(self)
        moved._items = self._items.to(device)
        for name in ("_kinds", "_steps", "_closing", "_opened"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def start(self, rows: int) -> Tensor:
        """Before the first block, at the root, for every row."""
        return torch.zeros(rows, dtype=torch.int64, device=self._kinds.device)

    def sites(self, states: Tensor) -> Tensor:
        """What kind of token stands behind states [...]."""
        _, place, total, used = self._unpack(states)
        kind = self._kinds[place]
        sites = torch.where(kind == _SID, self._steps[place], self.fixed)
        words = torch.where(used < self.config.minimum, self.open, self.word)
        return torch.where((kind == _WORD) & (used < self._limit(place, total, used)), words, sites)

    def legal(self, site: int, states: Tensor) -> Legal:
        """Children of the node, or words; one row of the mask stands for all states where it is the same."""
        if site < self.num_steps:
            return self._items.legal(site, self._unpack(states)[0])
        if site == self.fixed:
            raise ValueError("nothing is chosen at a forced place; ask `forced` for its token")
        return Legal(0, (self._closing if site == self.word else self._opened)[None])

    def forced(self, states: Tensor) -> Tensor:
        """Tokens [n] at forced places; 0 behind the end."""
        kind = self._kinds[self._unpack(states)[1]]
        tokens = torch.zeros_like(states)
        for form, token in ((_OPEN, self.words.opening), (_WORD, self.words.closing), (_BREAK, self.words.line_break)):
            if token is not None:
                tokens = torch.where(kind == form, token, tokens)
        return tokens

    def advance(self, site: int, states: Tensor, tokens: Tensor) -> Tensor:
        """States behind tokens; the states say where rows stand, so `site` is not used."""
        node, place, total, used = self._unpack(states)
        kind = self._kinds[place]
        ends = kind >= _END
        closes = (kind == _WORD) & (tokens == self.words.closing) & (used >= self.config.minimum)
        inside = (tokens >= 0) & (tokens < len(self._opened))
        limit = self._limit(place, total, used)
        speaks = (kind == _WORD) & inside & self._opened[torch.where(inside, tokens, 0)] & (used < limit)
        follows = ((kind == _OPEN) | (kind == _BREAK)) & (tokens == self.forced(states))
        child = torch.full_like(node, -1)
        for level in range(self.num_steps):
            rows = ((kind == _SID) & (self._steps[place] == level)).nonzero()[:, 0]
            if rows.numel():
                child[rows] = self._items.advance(level, node[rows], tokens[rows])
        node = torch.where(child >= 0, child, node)
        used, total = used + speaks.long(), total + speaks.long()
        if self.config.on_budget == "fail":
            place = torch.where(speaks & (used >= limit), len(self._kinds) - 1, place)
        moves = closes | follows | (child >= 0)
        place = place + moves.long()
        used = torch.where(moves, 0, used)
        known = (states >= 0) & (moves | speaks | ends)
        return torch.where(known, self._pack(node, place, total, used), -1)

    def finished(self, states: Tensor) -> Tensor:
        """Whether completions have ended, well or not."""
        return self._kinds[self._unpack(states)[1]] >= _END

    def thought(self, states: Tensor) -> Tensor:
        """Whether a SID token is due, or nothing any more."""
        kind = self._kinds[self._unpack(states)[1]]
        return (kind == _SID) | (kind >= _END)

    def decode(self, tokens: Tensor) -> Decoded:
        """What completions [B, T] say; steps of a completion that breaks off or failed have no choice."""
        states = self.start(len(tokens))
        choices = torch.full((len(tokens), self.num_steps), -1, device=tokens.device)
        first = torch.tensor(self.first_ids, device=tokens.device)
        for column in tokens.unbind(1):
            sites = self.sites(states)
            rows = ((sites < self.num_steps) & (states >= 0)).nonzero()[:, 0]
            states = self.advance(0, states, column)
            rows = rows[states[rows] >= 0]
            choices[rows, sites[rows]] = column[rows] - first[sites[rows]]
        whole = (states >= 0) & (self._kinds[self._unpack(states)[1]] == _END)
        choices = torch.where(whole[:, None], choices, -1)
        sids = self._items.decode(torch.where(whole[:, None], choices + first, -1))
        return Decoded(choices, sids.items, sids.leaves)

    def closed(self, tokens: Tensor, support: Tensor) -> Tensor:
        """[B, K] bool: blocks of completions [B, T] that were ended by choice, not by their budget."""
        chosen = (tokens == self.words.closing) & (self.sites(support) == self.word)
        steps = self.step_ids(support)
        return torch.stack([(chosen & (steps == step)).any(1) for step in range(self.num_steps)], dim=1)

    def compose(self, items: Tensor, blocks: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Completions with given thinking.

        Args:
            items: catalogue rows [n].
            blocks: K blocks of word ids for each; what is beyond the budget is cut off.

        Returns:
            tokens [n, T], 0 behind the end, and the states before them [n, T].

        Raises:
            DataError: naming the first trace with another number of blocks, a block below the minimum or a token that
                is no word.
        """
        rows = []
        sids = self._items.render(items).tolist()
        for number, (trace, sid) in enumerate(zip(blocks, sids, strict=True)):
            rows.append(self._written(number, trace, sid))
        length = max((len(row) for row in rows), default=1)
        padded = [row + [0] * (length - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64, device=self._kinds.device).view(len(rows), length)
        states = self.start(len(rows))
        support = []
        for column in tokens.unbind(1):
            support.append(states)
            states = self.advance(0, states, column)
        if bool((states < 0).any()):
            raise DataError(f"trace {int((states < 0).nonzero()[0])} holds a token that no block may hold.")
        return tokens, torch.stack(support, dim=1)

    def _written(self, number: int, trace: Sequence[Sequence[int]], sid: list[int]) -> list[int]:
        """One completion as token ids."""
        if len(trace) != self.num_steps:
            raise DataError(f"trace {number} has {len(trace)} blocks, SIDs have {self.num_steps} levels.")
        words, config = self.words, self.config
        breaks = [] if words.line_break is None else [words.line_break]
        row: list[int] = []
        left = self.total
        for step, block in enumerate(trace):
            room = min(config.budget, left - self.kept * (self.num_steps - 1 - step))
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

    def rank(self, leaves: Tensor, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """As the grammar of the SID ranks them."""
        return self._items.rank(leaves, scores, width)

    def render(self, items: Tensor) -> Tensor:
        """Refused: the catalogue does not say what to think."""
        raise UnsupportedError(
            "layout blocked has no completion for an item alone, because thinking belongs to it: use `compose`, or the "
            "layout `sid` for objectives that train on the targets (ce)."
        )

    def filtered(self, *, allow: Tensor | None = None, deny: Tensor | None = None) -> BlockedLayout:
        """The layout whose items are filtered."""
        return self._with(self._items.filtered(allow=allow, deny=deny))

    def only(self, keep: Tensor) -> BlockedLayout:
        """The layout of some items."""
        return self._with(self._items.only(keep))

    def requests(self, rows: Tensor) -> BlockedLayout:
        """The layout for some of the requests."""
        return self._with(self._items.requests(rows))

    def _with(self, items: Layout) -> BlockedLayout:
        other = copy.copy(self)
        other._items = items
        return other

    def codes_of_items(self) -> Tensor:
        """SID codes of the catalogue."""
        return self._items.codes_of_items()

    def step_ids(self, support: Tensor) -> Tensor:
        """Block k and SID token k are step k; padding is in none."""
        return torch.where(support < 0, -1, self._steps[self._unpack(support)[1]])

    def item_mask(self, support: Tensor) -> Tensor:
        """SID tokens."""
        return self._kinds[self._unpack(support)[1]] == _SID

    @property
    def widest(self) -> int:
        """Ids of words and SID tokens."""
        return max(len(self._opened), *self.sizes)

    @property
    def completions(self) -> int:
        """Number of distinct SIDs; thinking is not counted."""
        return self._items.completions

    def _limit(self, place: Tensor, total: Tensor, used: Tensor) -> Tensor:
        """Words that a block may have: its budget, as far as the blocks behind it keep what they need of the total."""
        later = self.num_steps - 1 - self._steps[place]
        return (self.total - (total - used) - self.kept * later).clamp(max=self.config.budget)

    def _unpack(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Node, place in the form, words of all blocks and of this one."""
        places, totals, used = self._radix
        rest = states.clamp(min=0)
        count, rest = rest % used, rest // used
        total, rest = rest % totals, rest // totals
        return rest // places, rest % places, total, count

    def _pack(self, node: Tensor, place: Tensor, total: Tensor, used: Tensor) -> Tensor:
        places, totals, most = self._radix
        return ((node * places + place) * totals + total) * most + used


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
