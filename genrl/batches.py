"""The batches that flow through genrl: frozen, checked when made, sliceable by prompt.

Letters: P prompts, G samples per prompt, B = P*G rows (row i belongs to prompt i // G), L prompt tokens, T completion
tokens, S steps, N items per completion, M targets per prompt, W ranked items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from genrl.ops import expect

Rows = slice | Tensor
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BatchT = TypeVar("BatchT", bound="_Batch")


class _Batch:
    """Moves every tensor of a frozen dataclass, nested ones and mappings too."""

    __slots__ = ()

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = False) -> BatchT:
        """Return the batch on another device (Lightning asks frozen batches for this method)."""
        moved = {f.name: _moved(getattr(self, f.name), device, non_blocking) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


def _moved(value: Any, device: torch.device | str, non_blocking: bool) -> Any:  # noqa: ANN401
    if isinstance(value, (Tensor, _Batch)):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, non_blocking) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Targets(_Batch):
    """What the user really chose, as catalogue rows; it travels with its prompt, never through a lookup by text."""

    items: Tensor
    """[P, M] int64 catalogue rows; -1 pads."""
    feedback: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [P, M] float: what the log says of each target (click, like, play time ...)."""

    def __post_init__(self) -> None:
        expect(self.items, "Targets.items", (None, None), torch.int64)
        for name, value in self.feedback.items():
            expect(value, f"Targets.feedback[{name!r}]", tuple(self.items.shape), *FLOATS)

    def prompts(self, rows: Rows) -> Targets:
        """The targets of some prompts."""
        return Targets(self.items[rows], {name: value[rows] for name, value in self.feedback.items()})

    def repeat(self, group_size: int) -> Targets:
        """One row per completion: [P, M] -> [B, M]."""
        feedback = {name: value.repeat_interleave(group_size, dim=0) for name, value in self.feedback.items()}
        return Targets(self.items.repeat_interleave(group_size, dim=0), feedback)


@dataclass(frozen=True, slots=True)
class Requests(_Batch):
    """Tokenised prompts with their targets and the items that the prompt shows."""

    tokens: Tensor
    """[P, L] int64, left-padded."""
    mask: Tensor
    """[P, L] bool, False on padding."""
    targets: Targets
    history: Tensor
    """[P, H] int64 catalogue rows the user has seen; -1 pads. Needed to rank with the history excluded."""

    def __post_init__(self) -> None:
        expect(self.tokens, "Requests.tokens", (None, None), torch.int64)
        expect(self.mask, "Requests.mask", tuple(self.tokens.shape), torch.bool)
        expect(self.targets.items, "Requests.targets", (len(self), None))
        expect(self.history, "Requests.history", (len(self), None), torch.int64)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def prompts(self, rows: Rows) -> Requests:
        """Some prompts of the batch."""
        return Requests(self.tokens[rows], self.mask[rows], self.targets.prompts(rows), self.history[rows])


@dataclass(frozen=True, slots=True)
class Completions(_Batch):
    """P prompts with G completions each; immutable. Row i of B = P*G belongs to prompt i // G.

    The prompt is stored once: a completion is a few tokens behind a prompt of 60-1000, so a copy per completion would
    make rollout and loss many times dearer. A *step* is the unit of credit: a SID token (sid), a think block with its
    SID token (blocked), one item of a slate.
    """

    prompt_tokens: Tensor
    """[P, L] int64, left-padded."""
    prompt_mask: Tensor
    """[P, L] bool."""
    tokens: Tensor
    """[B, T] int64 completions, right-padded."""
    chosen: Tensor
    """[B, T] bool: tokens the policy chose; neither padding nor forced (a forced token has one legal value)."""
    step_ids: Tensor
    """[B, T] int64 in [-1, S); -1 is in no step (padding, end token)."""
    item_mask: Tensor
    """[B, T] bool: tokens that decide an item (SID or title tokens, not thinking)."""
    support: Tensor
    """[B, T] int64: names the legal set that each token was drawn from; the layout defines it."""
    codes: Tensor
    """[B, S] int64: what step s chose (a code of its level); -1 invalid."""
    items: Tensor
    """[B, N] int64 decoded catalogue rows; -1 is no item."""
    logps: Tensor
    """[B, T] float log-probability under the sampling policy in nats; 0 outside `chosen`."""
    group_size: int
    """G."""
    num_steps: int
    """S."""
    ref_logps: Tensor | None = None
    """[B, T] float log-probability under the reference policy."""
    entropy: Tensor | None = None
    """[B, T] float entropy of the legal distribution each token was drawn from, nats."""
    categories: Tensor | None = None
    """[B, N] int64 second-level category of each item; -1 unknown."""
    item_ids: Tensor | None = None
    """[B, T] int64: which of the N items of the completion the token writes; -1 none. None means one item."""
    closed: Tensor | None = None
    """[B, S] bool: the policy itself ended the block of step s, within its budget. None: a layout without thinking."""

    def __post_init__(self) -> None:
        rows, length = self.tokens.shape
        prompts = self.prompt_tokens.shape[0]
        if rows != prompts * self.group_size:
            raise ValueError(f"Completions: {rows} rows, expected {prompts} prompts x group_size {self.group_size}")
        expect(self.prompt_tokens, "Completions.prompt_tokens", (prompts, None), torch.int64)
        expect(self.prompt_mask, "Completions.prompt_mask", tuple(self.prompt_tokens.shape), torch.bool)
        expect(self.tokens, "Completions.tokens", (rows, length), torch.int64)
        expect(self.chosen, "Completions.chosen", (rows, length), torch.bool)
        expect(self.step_ids, "Completions.step_ids", (rows, length), torch.int64)
        expect(self.item_mask, "Completions.item_mask", (rows, length), torch.bool)
        expect(self.support, "Completions.support", (rows, length), torch.int64)
        expect(self.codes, "Completions.codes", (rows, self.num_steps), torch.int64)
        expect(self.items, "Completions.items", (rows, None), torch.int64)
        expect(self.logps, "Completions.logps", (rows, length), *FLOATS)
        for name in ("ref_logps", "entropy", "item_ids"):
            value = getattr(self, name)
            if value is not None:
                expect(value, f"Completions.{name}", (rows, length))
        if self.categories is not None:
            expect(self.categories, "Completions.categories", tuple(self.items.shape), torch.int64)
        if self.closed is not None:
            expect(self.closed, "Completions.closed", (rows, self.num_steps), torch.bool)

    def __len__(self) -> int:
        """Number of prompts."""
        return self.prompt_tokens.shape[0]

    def prompts(self, rows: Rows) -> Completions:
        """Whole groups: the unit of a micro-batch. `rows` selects prompts."""
        return _select(self, rows, self.group_size, per_prompt=("prompt_tokens", "prompt_mask"))


@dataclass(frozen=True, slots=True)
class Rewards(_Batch):
    """Rewards of a rollout; `components` are unweighted, for logs and decoupled advantages."""

    outcome: Tensor
    """[B] float: weighted sum of all components."""
    steps: Tensor | None = None
    """[B, S] float: weighted sum of the step rewards that say whether a step matched; None if there are none."""
    components: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [B] float."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """name -> weight of that component in `outcome`."""
    shaping: Tensor | None = None
    """[B, S] float: weighted sum of the step rewards that are no matches (`format`); None if there are none."""

    def __post_init__(self) -> None:
        expect(self.outcome, "Rewards.outcome", (None,), *FLOATS)
        rows = self.outcome.shape[0]
        if self.steps is not None:
            expect(self.steps, "Rewards.steps", (rows, None), *FLOATS)
        if self.shaping is not None:
            steps = None if self.steps is None else self.steps.shape[1]
            expect(self.shaping, "Rewards.shaping", (rows, steps), *FLOATS)
        for name, value in self.components.items():
            expect(value, f"Rewards.components[{name!r}]", (rows,), *FLOATS)

    def rows(self, rows: Rows) -> Rewards:
        """The rewards of some completions."""
        return Rewards(
            self.outcome[rows],
            None if self.steps is None else self.steps[rows],
            {name: value[rows] for name, value in self.components.items()},
            self.weights,
            None if self.shaping is None else self.shaping[rows],
        )


@dataclass(frozen=True, slots=True)
class Scores(_Batch):
    """What the current policy says of a rollout's tokens."""

    logps: Tensor
    """[B, T] float with gradient, nats; 0 outside the rollout's mask."""
    entropy: Tensor | None = None
    """[B, T] float entropy over the legal set, nats."""


@dataclass(frozen=True, slots=True)
class Experience(_Batch):
    """A rollout with its credit: all that a loss needs, sliceable into micro-batches of whole groups.

    `weights` already hold every denominator, counted over the whole optimisation batch and all ranks, so losses (and
    gradients) of micro-batches add up to those of the whole.
    """

    rollout: Completions
    advantages: Tensor
    """[B, T] float."""
    weights: Tensor
    """[B, T] float >= 0; 0 outside the mask."""
    mass: Tensor
    """[B] float: each row's share of the denominator, in the unit of `weights`; `renormalized` divides by its sum."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [B, ...]: what a surrogate prepared for its rows (bounds, diversities)."""

    def __post_init__(self) -> None:
        shape = tuple(self.rollout.tokens.shape)
        expect(self.advantages, "Experience.advantages", shape, *FLOATS)
        expect(self.weights, "Experience.weights", shape, *FLOATS)
        expect(self.mass, "Experience.mass", shape[:1], *FLOATS)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.rollout)

    def prompts(self, rows: Rows) -> Experience:
        """Whole groups of the experience. `rows` selects prompts."""
        return _select(self, rows, self.rollout.group_size)


@dataclass(frozen=True, slots=True)
class Ranking(_Batch):
    """Ranked items per prompt, best first."""

    items: Tensor
    """[P, W] int64 catalogue rows; -1 pads."""
    scores: Tensor
    """[P, W] float, non-increasing; -inf on padding."""
    bound: Tensor | None = None
    """[P] float: no item outside the list scores higher; -inf where the list is all there is. None: not known."""

    def __post_init__(self) -> None:
        expect(self.items, "Ranking.items", (None, None), torch.int64)
        expect(self.scores, "Ranking.scores", tuple(self.items.shape), *FLOATS)
        if self.bound is not None:
            expect(self.bound, "Ranking.bound", tuple(self.items.shape[:1]), *FLOATS)

    def certified(self, k: int) -> Tensor:
        """[P] bool: the first k items are provably the best k of the whole catalogue, up to ties within rounding.

        Example:
            >>> scores = torch.tensor([[-1.0, -2.0], [-1.0, -3.0]])
            >>> Ranking(torch.tensor([[4, 2], [4, 2]]), scores, torch.tensor([-2.5, -2.5])).certified(2).tolist()
            [True, False]
        """
        if self.bound is None or not 1 <= k <= self.items.shape[1]:
            bound = "no bound" if self.bound is None else "a bound"
            raise ValueError(
                f"the top {k} of a ranking with {self.items.shape[1]} places and {bound} is not certifiable"
            )
        return self.scores[:, k - 1] >= self.bound

    def replaced(self, rows: Tensor, other: Ranking) -> Ranking:
        """This ranking with the prompts `rows` [n] taken from another one of n prompts and the same width."""
        if self.bound is None or other.bound is None:
            raise ValueError("only rankings with a bound can be replaced in part")
        return Ranking(
            self.items.index_copy(0, rows, other.items),
            self.scores.index_copy(0, rows, other.scores),
            self.bound.index_copy(0, rows, other.bound),
        )


def _select(batch: BatchT, rows: Rows, group_size: int, per_prompt: tuple[str, ...] = ()) -> BatchT:
    """Select prompts from a batch whose other tensors have `group_size` rows per prompt."""

    def pick(name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, (Completions, Experience)):
            return value.prompts(rows)
        if isinstance(value, Mapping):
            return {key: pick(key, item) for key, item in value.items()}
        if not isinstance(value, Tensor):
            return value
        if name in per_prompt:
            return value[rows]
        return value.unflatten(0, (-1, group_size))[rows].flatten(0, 1)

    picked = {f.name: pick(f.name, getattr(batch, f.name)) for f in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **picked)  # type: ignore[type-var]


LEFT_PADDED = ("prompt_tokens", "prompt_mask", "Requests.tokens", "Requests.mask", "history")
RIGHT_PADDED = {
    **dict.fromkeys(("tokens", "chosen", "item_mask", "logps", "ref_logps", "entropy"), 0),
    **dict.fromkeys(("step_ids", "support", "item_ids"), -1),
}
"""Fields of a rollout with a value per token, and what stands behind the end of a completion."""


def concatenate(first: BatchT, second: BatchT) -> BatchT:
    """Join two batches of the same kind along their rows.

    The shorter prompts are padded on the left, the shorter completions on the right.
    """

    def join(name: str, one: Any, two: Any) -> Any:  # noqa: ANN401
        if isinstance(one, _Batch):
            return concatenate(one, two)
        if isinstance(one, Mapping):
            return {key: join(key, one[key], two[key]) if isinstance(one[key], Tensor) else one[key] for key in one}
        if not isinstance(one, Tensor):
            return one
        if name in LEFT_PADDED or f"{type(first).__name__}.{name}" in LEFT_PADDED:
            width = max(one.shape[1], two.shape[1])
            fill = -1 if name == "history" else 0
            one, two = (torch.nn.functional.pad(part, (width - part.shape[1], 0), value=fill) for part in (one, two))
        if name in RIGHT_PADDED and isinstance(first, Completions):
            width, fill = max(one.shape[1], two.shape[1]), RIGHT_PADDED[name]
            one, two = (torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in (one, two))
        return torch.cat([one, two])

    joined = {f.name: join(f.name, getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}  # type: ignore[arg-type]
    return replace(first, **joined)  # type: ignore[type-var]
