"""What writing, searching and scoring ask of a policy: begin with requests, say what comes next, go on by tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

from genrl.batches import Requests
from genrl.layouts.base import Legal

T = TypeVar("T")


class Next(Protocol):
    """What a policy says of the token that follows, behind each of n states (or [n, T], or whatever their shape is)."""

    @property
    def first(self) -> int:
        """Token id of column 0 of all tokens."""

    @property
    def narrow(self) -> bool:
        """Whether few columns cost less than a range of tokens, see `Layout.narrow`."""

    def logits(self, legal: Legal | None) -> Tensor:
        """Float32 (or float64) logits [n, columns] of a legal set; None: of all tokens that it may be asked for."""

    def __getitem__(self, index: Any) -> Next:  # noqa: ANN401 (any index of tensors)
        """Some of the states."""

    def __len__(self) -> int:
        """The first dimension of the states."""


Say = Callable[[Next], T]
"""What follows -> anything, inside a pass of the policy, where sharded weights are whole."""


class Growth(Protocol):
    """W slots per request and level, each the child of a slot of the level before."""

    def begin(self, say: Say[T]) -> T:
        """Say what follows behind the requests [P]."""

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        """Say what follows behind one more token per slot, [P * W].

        Args:
            tokens: [P, W].
            say: see `Say`.
            parents: [P, W] slots of the level before; None: as many slots as before, each the child of its namesake,
                or all children of the request.
            live: [P, W] bool: slots whose answer is wanted, all of them children of live slots; None: all. What is
                said of the others has no meaning.

        Raises:
            ValueError: if slots were left out before and `live` does not say which of the new ones are not.
        """


class Generative(Protocol):
    """A policy that completions are written, searched and scored with: the language model, or anything beside it."""

    @property
    def first_ids(self) -> tuple[int, ...]:
        """Token id of code 0 of each SID level."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each SID level."""

    def grow(self, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False) -> Growth:
        """Completions that grow token by token behind requests, without gradient.

        Args:
            requests: P; text that was written before stands behind their prompts.
            width: slots per level, at most.
            depth: tokens that will be added, at most; the last token of a completion need not be.
            rows: what will be asked for: `legal`, SID tokens, or all of `vocab`.
            apart: whether slots end at different lengths, so that many are not live.
        """

    def follow(
        self,
        requests: Requests,
        written: Tensor,
        chosen: Tensor,
        say: Callable[[Next, Next], T],
        rows: str = "legal",
    ) -> T:
        """Say what follows before each token of given completions, with gradient.

        Args:
            requests: P.
            written: completions [B, T], B a multiple of P.
            chosen: [B, T] bool: tokens before which the answer is wanted; the others are of no use.
            say: gets what stands before each first token, [P] where a group shares it or else [B], and before all
                later ones, [B, T - 1].
            rows: as in `grow`.
        """
