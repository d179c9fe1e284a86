"""Completions that grow token by token behind their prompts, in each of the ways of `genrl.policy.branching`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from genrl.policy.branching import Shape, choose
from genrl.policy.cache import ReservedLayer, model_cache, tree_cache
from genrl.policy.model import Head, Policy, Read
from genrl.policy.sharing import SharedPrompt, can_share
from genrl.policy.tree import ancestry_mask, left_padded, prompt_positions, right_padded

T = TypeVar("T")


class Branches(ABC):
    """W slots per prompt and level, each the child of a slot of the level before.

    Each pass gives what `read` makes of hidden states and head inside of it, see `Policy.forward`.

    Args:
        policy: the model.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        width: slots per level, at most.
        levels: tokens that will be added to each prompt.
        rows: of the head, see `Policy.forward`.
    """

    def __init__(self, policy: Policy, tokens: Tensor, mask: Tensor, width: int, levels: int, rows: str) -> None:
        self.policy = policy
        self.rows = rows
        self.tokens = tokens
        self.mask = mask
        self.most = width
        self.levels = levels
        self.column: Tensor | None = None
        """[P, W] column of the model's row that each slot of the last level stands in; None: its own."""
        self.depth = 0

    @abstractmethod
    def prefill(self, read: Read[T]) -> T:
        """Read hidden states [P, H] behind the prompts."""

    @abstractmethod
    def _extend(self, tokens: Tensor, parents: Tensor | None, read: Read[T]) -> T:
        """Read hidden states [P, W, H] behind one more token [P, W] per slot; `parents` as in `extend`."""

    def extend(self, tokens: Tensor, read: Read[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        """Read hidden states [P, W, H] behind one more token per slot, zero at slots that are left out.

        Args:
            tokens: [P, W].
            read: see `Policy.forward`.
            parents: [P, W] slots of the level before; None: as many slots as before, each the child of its namesake,
                or all children of the prompt.
            live: [P, W] bool: slots whose hidden state is wanted, all of them children of live slots; None: all.
                Rows stay rectangular, so each prompt computes as many slots as the one with most. On devices that run
                ahead of the host their number is not known in time, and all slots are computed.
        """
        prompts, width = tokens.shape
        count = width if live is None or live.device.type != "cpu" else int(live.sum(1).max())
        if count == width and self.column is None:
            return self._extend(tokens, parents, read)
        if live is None:
            raise ValueError("slots were left out before; say which of the new ones are live")
        order = (~live).byte().argsort(dim=1, stable=True)[:, :count]
        chosen = order if parents is None else parents.gather(1, order)
        if self.depth == 0:
            chosen = torch.zeros_like(order)
        elif self.column is not None:
            chosen = self.column.gather(1, chosen)
        columns = torch.arange(count).expand(prompts, -1)
        self.column = torch.zeros(prompts, width, dtype=torch.int64).scatter(1, order, columns)

        def placed(hidden: Tensor, head: Head) -> T:
            whole = hidden.new_zeros(prompts, width, hidden.shape[-1])
            return read(whole.scatter(1, order[:, :, None].expand_as(hidden), hidden), head)

        if count == 0:
            return self.policy(order, None, order, placed, self.rows)
        return self._extend(tokens.gather(1, order), chosen, placed)

    def positions(self, width: int) -> Tensor:
        """Position [P, width] of the tokens at the present depth."""
        return (self.mask.sum(1, keepdim=True) + self.depth).expand(-1, width)


class TreeBranches(Branches):
    """All slots of a prompt in one row: nothing is copied, a mask shows each slot its ancestors."""

    def prefill(self, read: Read[T]) -> T:
        """Fill the cache with the prompts."""
        self.tokens, self.mask = right_padded(self.tokens, self.mask)
        prompts, length = self.tokens.shape
        self.cache = tree_cache(self.policy.base.config, length + self.most * self.levels)
        self.widths: list[int] = []
        self.ancestors: list[Tensor] = []
        positions = torch.arange(length, device=self.tokens.device).expand(prompts, -1)

        def last(hidden: Tensor, head: Head) -> T:
            places = (self.mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
            return read(hidden.gather(1, places)[:, 0], head)

        return self.policy(self.tokens, None, positions, last, self.rows, self.cache)

    def _extend(self, tokens: Tensor, parents: Tensor | None, read: Read[T]) -> T:
        """Add one level to the rows."""
        prompts, width = tokens.shape
        slots = torch.arange(width, device=tokens.device).expand(prompts, -1)
        if parents is not None:
            self.ancestors = [earlier.gather(1, parents) for earlier in self.ancestors]
        self.ancestors.append(slots)
        self.widths.append(width)
        mask = ancestry_mask(self.mask, self.ancestors, self.widths)
        positions = self.positions(width)
        self.depth += 1
        return self.policy(tokens, mask, positions, read, self.rows, self.cache)


class ExpandedBranches(Branches):
    """A row per slot, with a copy of what its prompt left in the cache."""

    def prefill(self, read: Read[T]) -> T:
        """Fill the cache with the prompts, one row each."""
        room = self.tokens.shape[1] + self.levels
        self.cache = model_cache(self.policy.base.config, partial(ReservedLayer, room))
        self.seen = self.mask
        self.width = 1
        return self.policy(self.tokens, self.mask, prompt_positions(self.mask), _last(read), self.rows, self.cache)

    def _extend(self, tokens: Tensor, parents: Tensor | None, read: Read[T]) -> T:
        """Give every slot the row of its parent and add one token."""
        prompts, width = tokens.shape
        if parents is not None or width != self.width:
            first = torch.arange(prompts, device=tokens.device)[:, None] * self.width
            rows = (first if parents is None else first + parents).expand(-1, width).flatten()
            self.cache.batch_select_indices(rows)
            self.seen = self.seen[rows]
        self.width = width
        self.seen = torch.cat([self.seen, self.seen.new_ones(prompts * width, 1)], dim=1)
        positions = self.positions(width).reshape(-1, 1)
        self.depth += 1
        return self.policy(
            tokens.reshape(-1, 1),
            self.seen,
            positions,
            lambda hidden, head: read(hidden.view(prompts, width, -1), head),
            self.rows,
            self.cache,
        )


class NaiveBranches(Branches):
    """Every slot computed anew from its prompt on: no cache, no mask of our own."""

    def prefill(self, read: Read[T]) -> T:
        """The prompts alone."""
        self.grown = self.tokens.new_empty(len(self.tokens), 1, 0)
        return self.policy(self.tokens, self.mask, prompt_positions(self.mask), _last(read), self.rows)

    def _extend(self, tokens: Tensor, parents: Tensor | None, read: Read[T]) -> T:
        """Every slot's prompt with all of its tokens."""
        prompts, width = tokens.shape
        if parents is not None:
            self.grown = self.grown.gather(1, parents[:, :, None].expand(-1, -1, self.depth))
        self.grown = torch.cat([self.grown.expand(-1, width, -1), tokens[:, :, None]], dim=2)
        self.depth += 1
        rows, mask, positions = alone(self.tokens, self.mask, self.grown)
        return self.policy(
            rows, mask, positions, _last(lambda hidden, head: read(hidden.view(prompts, width, -1), head)), self.rows
        )


class Rows(ABC):
    """One completion per row, each `share` of them behind one prompt, that leave the batch when they end.

    Every row that is still there grows by one token at a time, so all have equally many.

    Args:
        policy: the model.
        tokens: prompts [P, L], left-padded.
        mask: [P, L].
        share: rows per prompt.
        levels: tokens that will be added to each row, at most.
        rows: of the head, see `Policy.forward`.
    """

    def __init__(self, policy: Policy, tokens: Tensor, mask: Tensor, share: int, levels: int, rows: str) -> None:
        self.policy = policy
        self.rows = rows
        self.tokens = tokens
        self.mask = mask
        self.levels = levels
        self.prompts = torch.arange(len(tokens), device=tokens.device).repeat_interleave(share)
        self.depth = 0

    @abstractmethod
    def prefill(self, read: Read[T]) -> T:
        """Read hidden states [P * share, H] behind the prompt of each row."""

    @abstractmethod
    def extend(self, tokens: Tensor, read: Read[T], going: Tensor | None = None) -> T:
        """Read hidden states [n, H] behind one more token [n] per row.

        Args:
            tokens: one for each row that goes on.
            read: see `Policy.forward`.
            going: [rows so far] bool: the rows that go on; None: all.
        """


class ShrinkingRows(Rows):
    """Rows in a cached batch, from which those that have ended are taken out together, not one by one.

    Until then they are computed along: each copy of the batch costs about as much as a token of it.
    """

    def _hold(self) -> None:
        """The batch holds rows that all go on."""
        self.held = torch.arange(len(self.prompts), device=self.tokens.device)

    @abstractmethod
    def _keep(self, rows: Tensor) -> None:
        """Make a batch of some of its rows [n]."""

    @abstractmethod
    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        """Read hidden states [rows of the batch, 1, H] behind one more token for each."""

    def extend(self, tokens: Tensor, read: Read[T], going: Tensor | None = None) -> T:
        """Add one token; when an eighth of the batch has ended, copy the rest into a smaller one."""
        if going is not None:
            self.held = self.held[going]
            if len(self.held) <= len(self.prompts) * 7 // 8:
                self.prompts = self.prompts[self.held]
                self._keep(self.held)
                self._hold()
        held, fed = self.held, tokens.new_zeros(len(self.prompts)).index_copy(0, self.held, tokens)
        found = self._feed(fed, lambda hidden, head: read(hidden[held, 0], head))
        self.depth += 1
        return found


class CachedRows(ShrinkingRows):
    """A copy of the prompt's keys and values per row."""

    def prefill(self, read: Read[T]) -> T:
        """Compute each prompt once and copy what it left in the cache."""
        room = self.tokens.shape[1] + self.levels
        self.cache = model_cache(self.policy.base.config, partial(ReservedLayer, room))
        prompts = self.prompts
        found: T = self.policy(
            self.tokens,
            self.mask,
            prompt_positions(self.mask),
            lambda hidden, head: read(hidden[prompts, -1], head),
            self.rows,
            self.cache,
        )
        self.cache.batch_select_indices(self.prompts)
        self.seen = self.mask[self.prompts]
        self.lengths = self.seen.sum(1)
        self._hold()
        return found

    def _keep(self, rows: Tensor) -> None:
        """Copy the caches of the rows."""
        self.cache.batch_select_indices(rows)
        self.seen, self.lengths = self.seen[rows], self.lengths[rows]

    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        """One token behind all that each row has."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], dim=1)
        positions = (self.lengths + self.depth)[:, None]
        return self.policy(tokens[:, None], self.seen, positions, read, self.rows, self.cache)


class SharingRows(ShrinkingRows):
    """One copy of each prompt's keys and values for all its rows."""

    def prefill(self, read: Read[T]) -> T:
        """Compute each prompt once."""
        prompts, found = self.prompts, []
        self.shared = SharedPrompt(
            self.policy,
            self.tokens,
            self.mask,
            prompts,
            lambda hidden, head: found.append(read(hidden[prompts], head)),
            self.rows,
        )
        self.cache = tree_cache(self.policy.base.config, self.levels)
        self._hold()
        return found[0]

    def _keep(self, rows: Tensor) -> None:
        """Copy the rows' own caches; prompts stay where they are."""
        self.shared.serve(self.prompts)
        if self.depth:
            self.cache.batch_select_indices(rows)

    def _feed(self, tokens: Tensor, read: Read[T]) -> T:
        """One token behind the shared prompt and the row's own tokens."""
        positions = (self.shared.lengths[self.prompts] + self.depth)[:, None]
        with self.shared.attended():
            return self.policy(tokens[:, None], None, positions, read, self.rows, self.cache, shared=self.shared)


class PlainRows(Rows):
    """Every row computed anew from its prompt on: no cache."""

    def prefill(self, read: Read[T]) -> T:
        """The prompts alone."""
        self.grown = self.tokens.new_empty(len(self.prompts), 0)
        return self.policy(
            self.tokens,
            self.mask,
            prompt_positions(self.mask),
            lambda hidden, head: read(hidden[self.prompts, -1], head),
            self.rows,
        )

    def extend(self, tokens: Tensor, read: Read[T], going: Tensor | None = None) -> T:
        """The rows that go on with all of their tokens."""
        if going is not None:
            self.grown, self.prompts = self.grown[going], self.prompts[going]
        self.grown = torch.cat([self.grown, tokens[:, None]], dim=1)
        rows, mask, positions = alone(self.tokens[self.prompts], self.mask[self.prompts], self.grown[:, None])
        return self.policy(rows, mask, positions, _last(read), self.rows)


def _last(read: Read[T]) -> Read[T]:
    """Read the last hidden state of each row alone."""
    return lambda hidden, head: read(hidden[:, -1], head)


def grow_rows(policy: Policy, tokens: Tensor, mask: Tensor, share: int, depth: int, rows: str = "legal") -> Rows:
    """Rows for `share` completions per prompt that feed up to `depth` tokens each and end at different lengths.

    Args:
        policy: the model.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        share: completions per prompt.
        depth: tokens per completion that go through the model, at most.
        rows: of the head, see `Policy.forward`.
    """
    tokens, mask = left_padded(tokens, mask)
    shape = Shape(tokens.shape[0], share, tokens.shape[1], depth)
    if choose(policy, shape, decode=True, ways=("expand", "naive")) == "naive":
        return PlainRows(policy, tokens, mask, share, depth, rows)
    sharing = can_share(policy, shape.context + depth)
    return (SharingRows if sharing else CachedRows)(policy, tokens, mask, share, depth, rows)


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


def grow(policy: Policy, tokens: Tensor, mask: Tensor, width: int, depth: int, rows: str = "legal") -> Branches:
    """Branches for `width` completions per prompt that feed `depth` tokens each, in the cheapest way.

    Args:
        policy: the model.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        width: completions per prompt.
        depth: tokens per completion that go through the model.
        rows: of the head, see `Policy.forward`.
    """
    tokens, mask = left_padded(tokens, mask)
    shape = Shape(tokens.shape[0], width, tokens.shape[1], depth)
    kinds: dict[str, type[Branches]] = {"tree": TreeBranches, "expand": ExpandedBranches, "naive": NaiveBranches}
    return kinds[choose(policy, shape, decode=True)](policy, tokens, mask, width, depth, rows)


class Growing:
    """Rows [n] that grow behind prompts, each of them wanted or not, in whatever way is cheapest.

    Args:
        policy: the model.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        width: rows per prompt.
        length: tokens per row at most; the last one does not go through the model.
        in_step: whether all rows end together.
        head: rows of the head, see `Policy.forward`.
    """

    def __init__(
        self, policy: Policy, tokens: Tensor, mask: Tensor, width: int, length: int, in_step: bool, head: str
    ) -> None:
        self.shape = len(tokens), width
        self.branches = grow(policy, tokens, mask, width, length - 1, head) if in_step else None
        self.rows = None if in_step else grow_rows(policy, tokens, mask, width, length, head)
        self.live = torch.arange(len(tokens) * width, device=tokens.device)

    def begin(self, read: Read[T]) -> T:
        """Read hidden states [n, H] behind the prompt of each row."""
        if self.branches is not None:
            width, count = self.shape[1], len(self.live)
            return self.branches.prefill(
                lambda hidden, head: read(hidden[:, None].expand(-1, width, -1).reshape(count, -1), head)
            )
        assert self.rows is not None
        return self.rows.prefill(read)

    def extend(self, tokens: Tensor, needed: Tensor | None, read: Read[T]) -> T:
        """Read hidden states [n, H] behind one more token [n]; zero where they are not `needed` [n], now or later."""
        count = len(tokens)
        if self.branches is not None:
            live = None if needed is None else needed.view(self.shape)
            return self.branches.extend(
                tokens.view(self.shape), lambda hidden, head: read(hidden.reshape(count, -1), head), live=live
            )
        assert self.rows is not None
        kept = torch.ones_like(self.live, dtype=torch.bool) if needed is None else needed[self.live]
        live = self.live = self.live[kept]

        def placed(hidden: Tensor, head: Head) -> T:
            return read(hidden.new_zeros(count, hidden.shape[-1]).index_copy(0, live, hidden), head)

        return self.rows.extend(tokens[live], placed, kept)
