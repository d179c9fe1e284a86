"""The grammar of a completion, as a batched automaton over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from genrl.batches import Requests, State, stacked
from genrl.errors import UnsupportedError
from genrl.registry import Registry

LayoutT = TypeVar("LayoutT", bound="Layout")
LAYOUTS: Registry[Layout] = Registry("layout", "genrl.layouts")

Kind = Literal["item", "word", "form"]
"""What a token is: of an item, of free text, or a mark or separator that nobody chooses."""
ENDED, BROKEN = -1, -2
"""Sites of completions that are whole or failed by the rules, and of those that hold a token which was not legal."""


@dataclass(frozen=True)
class Words:
    """Tokens of free text, as the tokenizer has them. All stand before the SID tokens."""

    opening: int
    """Id of `<think>`."""
    closing: int
    """Id of `</think>`."""
    line_break: int | None
    """Id of the token behind a block; None: the tokenizer has none for a line break."""
    legal: Tensor
    """[first SID token] bool: what may stand inside a block."""


@dataclass(frozen=True)
class TokenRanges:
    """What a layout needs of the tokenizer: for each SID level a range of token ids, code after code."""

    first_ids: tuple[int, ...]
    """Token id of code 0 of each level."""
    sizes: tuple[int, ...]
    """Codes of each level."""


@dataclass(frozen=True)
class Legal:
    """What may come next behind n states: a range of the vocabulary, or tokens named one by one.

    One legal token is a forced one. No row is empty.
    """

    mask: Tensor
    """[n, columns] bool: which of the columns are allowed; [1, columns] where that is the same for all."""
    first: int = 0
    """Token id of column 0 of a range, or of code 0 of the level."""
    tokens: Tensor | None = None
    """[n, columns] int64 token of each column; None: the columns are a range."""
    within: Tensor | None = None
    """[n, columns] bool: what would be allowed without a filter of items; None where there is no filter."""
    child: Tensor | None = None
    """[n] int64 trie node behind the first column of `edges`; further ones follow."""
    level: int = -1
    """SID level of the columns; -1: they are no edges of a trie."""
    whole: Tensor | None = None
    """[n, columns] bool: all edges of the trie, where the grammar rules some of them out (items that were named
    before); None: `within`, or else `mask`, holds them all."""

    @classmethod
    def fixed(cls, tokens: Tensor) -> Legal:
        """One token [n] each that is part of the form, nobody's choice."""
        return cls(torch.ones_like(tokens, dtype=torch.bool)[:, None], tokens=tokens[:, None])

    @property
    def form(self) -> bool:
        """Whether nothing is chosen at all."""
        return self.tokens is not None and self.tokens.shape[1] == 1

    @property
    def edges(self) -> Tensor:
        """[n, columns] bool: columns with an edge of the trie, whether it may be taken or not."""
        within = self.mask if self.within is None else self.within
        return within if self.whole is None else self.whole

    @property
    def nodes(self) -> Tensor:
        """[n, columns] int64 trie node behind each column, -1 where there is none: what is known of edges enters here.

        Raises:
            ValueError: where the columns are no edges of a trie.
        """
        if self.child is None:
            raise ValueError("no trie stands behind these tokens")
        return torch.where(self.edges, self.child[..., None] + self.edges.long().cumsum(-1) - 1, -1)

    def token(self, columns: Tensor, rows: Tensor | None = None) -> Tensor:
        """Tokens [n, k] in columns [n, k] of the sets, or of those of `rows` [n]."""
        if self.tokens is None:
            return columns + self.first
        return (self.tokens if rows is None else self.tokens[rows]).gather(1, columns)

    def among(self, values: Tensor, first: int = 0) -> Tensor:
        """Values [n, columns] of the columns, out of those of all tokens [n, V], of which `first` is the first."""
        if self.tokens is None:
            return values[..., self.first - first : self.first - first + self.mask.shape[-1]]
        return values.gather(-1, (self.tokens - first).clamp(min=0))

    def column(self, tokens: Tensor) -> Tensor:
        """Columns [n] of tokens [n]; -1 where there is none."""
        if self.tokens is None:
            columns = tokens - self.first
            return torch.where((columns >= 0) & (columns < self.mask.shape[-1]), columns, -1)
        same = (self.tokens == tokens[:, None]) & self.mask
        return torch.where(same.any(1), same.byte().argmax(1), -1)


@dataclass(frozen=True)
class Reading:
    """What completions say."""

    step_ids: Tensor
    """[B, T] int64 step of each token; -1 is in none."""
    item_ids: Tensor
    """[B, T] int64 item that each token decides; -1 is none."""
    codes: Tensor
    """[B, S] int64: what each step chose, a code or, where steps are items, a catalogue row; -1 invalid."""
    items: Tensor
    """[B, N] int64 catalogue rows; -1 is no item."""
    closed: Tensor | None = None
    """[B, S] bool: steps whose text was ended by choice; None: the layout has none."""


class Layout(ABC):
    """The grammar of a completion. Writing, searching, scoring and supervised text use it, and nothing else knows it.

    What may stand at a place depends on its *site*, a small number that the state names. Sites are of three kinds:
    tokens of items, words of free text, and the form (marks, separators), where one token is legal and nothing is
    chosen. States are batches, so beams reorder them as they reorder everything else.
    """

    tokens: TokenRanges
    steps: int
    """S: units of credit in a completion."""
    items: int = 1
    """N: items in a completion."""
    length: int
    """T: tokens of the longest completion."""
    kinds: tuple[Kind, ...]
    """Kind of each site."""
    in_step: bool = True
    """Whether every completion stands at site t before its token t."""
    writes_text: ClassVar[bool] = False
    """Whether completions hold free text, so that only a policy with words can write them."""
    writes_between: bool = False
    """Whether text stands between the tokens of an item, too, so that each beam of a search writes on its own."""
    in_words: ClassVar[bool] = False
    """Whether items are named by words, so that any token of the vocabulary may be one of an item, and completions of
    a search end one after the other."""
    writes_slates: ClassVar[bool] = False
    """Whether a completion is a list of `items` to be shown, so that the likeliest one is a ranking."""
    codes: Tensor
    """[I, K] SID codes of the catalogue: equal rows are one SID."""
    widest: int
    """Columns of the widest legal set."""
    completions: int
    """Number of distinct legal completions, text not counted."""

    @property
    def item_tokens(self) -> int:
        """Most tokens of items in a completion."""
        return sum(kind == "item" for kind in self.kinds)

    @property
    def item_names(self) -> tuple[str, ...] | None:
        """[I] what items are called in completions; None: they are named by SIDs."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """Name and options under which completions are written, called as in the configuration."""
        options = getattr(self, "config", None)
        known = asdict(options) if is_dataclass(options) and not isinstance(options, type) else {}
        return {"name": type(self).__name__.removesuffix("Layout").lower(), **known}

    @property
    def plain(self) -> Layout:
        """One item without text, which stage `align` learns; the layout itself unless it writes more."""
        return self

    @abstractmethod
    def to(self: LayoutT, device: str | torch.device) -> LayoutT:
        """The layout with its tables on another device."""

    @abstractmethod
    def start(self, requests: int, group: int = 1) -> State:
        """States [requests * group] before the first token; those of a request stand side by side."""

    @abstractmethod
    def legal(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        """What may stand at `site` behind `state` [n], all there, of the items that `requests` may get."""

    def narrow(self, site: int, state: State, requests: Requests | None = None) -> Legal:
        """As `legal`, for policies that say nothing of other tokens: few columns where few tokens may stand."""
        return self.legal(site, state, requests)

    @abstractmethod
    def advance(self, state: State, tokens: Tensor, site: int | None = None) -> State:
        """States behind `tokens` [n], all at `site` or (None) each at its own; what has ended stays as it is."""

    def settled(self, state: State, site: int | None = None) -> Tensor:
        """Whether only one completion is left behind states [n], so that they need no more of the model.

        What is left counts without filters of items.
        """
        return state.site < 0

    def ends_item(self, site: int) -> bool:
        """Whether a token at `site` is the last one of an item that others follow."""
        return False

    def told(self) -> list[str]:
        """What a run says of it at its start, line by line."""
        return []

    def pause(self: LayoutT) -> LayoutT:
        """The layout of completions that end behind each of their items, where these have no fixed place (`in_words`).

        Raises:
            UnsupportedError: where `ends_item` says by its site what ends an item.
        """
        raise UnsupportedError(f"{type(self).__name__} ends its items at fixed places.")

    def resume(self, state: State) -> State:
        """States [n] behind an item of a paused layout, as they go on."""
        return state

    @abstractmethod
    def read(self, tokens: Tensor, states: State, requests: Requests | None = None) -> Reading:
        """What completions [B, T] of `requests` say, with the states [B, T] before their tokens.

        A SID of several items names one that its request may get, as `rank` does.
        """

    @abstractmethod
    def compose(self, items: Tensor, texts: Sequence[Any] | None = None) -> Tensor:
        """Gold completions of catalogue rows [n, N], with blocks of word ids -> tokens [n, T], 0 behind the end.

        Raises:
            DataError: where the layout has no such completion.
            UnsupportedError: for a layout with text that gets none.
        """

    @abstractmethod
    def rank(self, state: State, scores: Tensor, width: int, requests: Requests | None = None) -> tuple[Tensor, Tensor]:
        """Final states [P * W] with scores [P, W], best first -> items [P, width] and their scores, -1 and -inf pad."""

    def only(self: LayoutT, keep: Tensor) -> LayoutT:
        """The layout of the items in `keep` [I] bool, a filter that all requests share (in stock, cold); rows stay.

        Raises:
            DataError: if none stays.
        """
        raise UnsupportedError(f"{type(self).__name__} has no filter for all requests. Use the layout `sid`.")

    def blocks(self, tokens: Tensor) -> list[list[int]]:
        """The texts of one completion [T] as token ids."""
        return []

    def replay(self, tokens: Tensor) -> State:
        """States [B, T] before each token of completions [B, T]."""
        state, states = self.start(len(tokens)), []
        for position, column in enumerate(tokens.unbind(1)):
            states.append(state)
            state = self.advance(state, column, position if self.in_step else None)
        return stacked(states)
