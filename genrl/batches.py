"""The batches that flow through genrl: frozen, checked when made, sliceable by request.

Letters: P requests, G completions per request, B = P*G rows (row i belongs to request i // G), L prompt tokens, T
completion tokens, S steps, N items per completion, M targets per request, W ranked items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from genrl.ops import FLOATS, expect, sent

Rows = slice | Tensor
BatchT = TypeVar("BatchT", bound="Batch")


def padded(side: str, fill: int = 0) -> dict[str, Any]:
    """Metadata of a field whose second axis is as long as the longest row needs: `side` and `fill` of shorter rows."""
    return {"side": side, "fill": fill}


class Batch:
    """Frozen tensors, batches and mappings of tensors with one row per request, completion or state."""

    __slots__ = ()

    def to(self: BatchT, target: torch.device | str | torch.dtype) -> BatchT:
        """On another device, or with floating-point tensors in another dtype; Lightning moves and converts with it."""
        if not isinstance(target, torch.dtype):
            return self.each(lambda value: sent(value, target))
        return self.each(lambda value: value.to(target) if value.is_floating_point() else value)

    def rows(self: BatchT, rows: Rows) -> BatchT:
        """Some rows, in the order asked for."""
        return self.each(lambda value: value[rows])

    def put(self: BatchT, rows: Tensor, other: BatchT) -> BatchT:
        """The batch with the rows `rows` [n] taken from another one of n rows."""
        return _both(
            self,
            other,
            lambda _, own, new: own.put(rows, new) if isinstance(own, Batch) else own.index_copy(0, rows, new),
        )

    def where(self: BatchT, mask: Tensor, other: BatchT) -> BatchT:
        """These rows where `mask` [n] holds, those of the other batch elsewhere."""

        def chosen(_: object, own: Any, new: Any) -> Any:  # noqa: ANN401
            if isinstance(own, Batch):
                return own.where(mask, new)
            return torch.where(mask.view(-1, *(1,) * (own.dim() - 1)), own, new)

        return _both(self, other, chosen)

    def repeat(self: BatchT, count: int) -> BatchT:
        """Each row `count` times, one behind the other."""
        return self.each(lambda value: value.repeat_interleave(count, dim=0))

    def each(self: BatchT, change: Callable[[Tensor], Tensor]) -> BatchT:
        """The batch with every tensor in it changed in the same way."""
        return replace(self, **{f.name: _changed(getattr(self, f.name), change) for f in _fields(self)})  # type: ignore[type-var]


def _fields(batch: Batch) -> tuple[Field[Any], ...]:
    return fields(batch)  # type: ignore[arg-type]


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Batch):
        return value.each(change)
    if isinstance(value, Mapping):
        return {key: _changed(item, change) for key, item in value.items()}
    return value


def concatenate(first: BatchT, second: BatchT) -> BatchT:
    """Join two batches of the same kind along their rows; fields made by `padded` are filled to the longer of both."""
    return _both(first, second, _joined)


def stacked(batches: Sequence[BatchT]) -> BatchT:
    """Batches of tensors [n, ...] of the same kind -> one of tensors [n, len(batches), ...]."""
    columns = {f.name: torch.stack([getattr(batch, f.name) for batch in batches], dim=1) for f in _fields(batches[0])}
    return replace(batches[0], **columns)  # type: ignore[type-var]


def beside(first: BatchT, second: BatchT, dim: int) -> BatchT:
    """Join two batches of the same kind along another axis."""
    return _both(
        first,
        second,
        lambda _, one, two: beside(one, two, dim) if isinstance(one, Batch) else torch.cat([one, two], dim=dim),
    )


def _both(first: BatchT, second: BatchT, join: Callable[..., Any]) -> BatchT:
    joined = {f.name: join(f, getattr(first, f.name), getattr(second, f.name)) for f in _fields(first)}
    return replace(first, **joined)  # type: ignore[type-var]


def _joined(kind: Field[Any], one: Any, two: Any) -> Any:  # noqa: ANN401
    if isinstance(one, Mapping):
        return {key: _joined(kind, one[key], two[key]) for key in one}
    if isinstance(one, Batch):
        return _both(one, two, lambda own, *parts: _joined(kind if kind.metadata else own, *parts))
    if not isinstance(one, Tensor):
        return one
    if "side" in kind.metadata:
        width = max(one.shape[1], two.shape[1])
        one, two = (widened(part, width, kind.metadata["side"], kind.metadata["fill"]) for part in (one, two))
    return torch.cat([one, two])


def widened(values: Tensor, width: int, side: str = "right", fill: int = 0) -> Tensor:
    """Values [n, w, ...] filled up to [n, width, ...] on one side."""
    missing = values.new_full((len(values), width - values.shape[1], *values.shape[2:]), fill)
    return torch.cat([missing, values] if side == "left" else [values, missing], dim=1)


@dataclass(frozen=True, slots=True)
class Targets(Batch):
    """What the user really chose, as catalogue rows; it travels with its request, never through a lookup by text."""

    items: Tensor
    """[P, M] int64 catalogue rows; -1 pads."""
    feedback: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [P, M] float: what the log says of each target (click, like, play time ...)."""
    tied: Tensor | None = None
    """[P, M] bool: the interaction before the target has the same time. None: not known."""

    def __post_init__(self) -> None:
        expect(self.items, "Targets.items", (None, None), torch.int64)
        for name, value in self.feedback.items():
            expect(value, f"Targets.feedback[{name!r}]", tuple(self.items.shape), *FLOATS)
        if self.tied is not None:
            expect(self.tied, "Targets.tied", tuple(self.items.shape), torch.bool)


@dataclass(frozen=True, slots=True)
class Requests(Batch):
    """Tokenised prompts, the items that they show, and which items they may get."""

    tokens: Tensor = field(metadata=padded("left"))
    """[P, L] int64, left-padded."""
    mask: Tensor = field(metadata=padded("left"))
    """[P, L] bool, False on padding."""
    history: Tensor = field(metadata=padded("left", -1))
    """[P, H] int64 catalogue rows the user has seen; -1 pads. Needed to rank with the history excluded."""
    targets: Targets | None = None
    """What the users chose; None where nobody knows yet."""
    pool: Tensor | None = field(default=None, metadata=padded("left", -1))
    """[P, C] int64 catalogue rows that a request may get, -1 pads; None: all."""
    deny: Tensor | None = field(default=None, metadata=padded("left", -1))
    """[P, D] int64 catalogue rows that a request must not get, -1 pads; None: none is ruled out."""

    def __post_init__(self) -> None:
        expect(self.tokens, "Requests.tokens", (None, None), torch.int64)
        expect(self.mask, "Requests.mask", tuple(self.tokens.shape), torch.bool)
        if self.targets is not None:
            expect(self.targets.items, "Requests.targets", (len(self), None))
        for name in ("history", "pool", "deny"):
            value = getattr(self, name)
            if value is not None:
                expect(value, f"Requests.{name}", (len(self), None), torch.int64)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def last(self, count: int) -> Requests:
        """With the last `count` columns of the prompts, which none may be longer than."""
        return replace(self, tokens=self.tokens[:, -count:], mask=self.mask[:, -count:])

    @property
    def wanted(self) -> Targets:
        """The targets; a ValueError where there are none."""
        if self.targets is None:
            raise ValueError("these requests have no targets; only what is ranked for a user can do without")
        return self.targets


@dataclass(frozen=True, slots=True)
class State(Batch):
    """Where completions stand in the grammar of their layout; a layout adds tensors of its own in a subclass."""

    site: Tensor
    """[n] int64: what kind of token comes next, as the layout numbers them; below 0 nothing comes any more."""
    owner: Tensor
    """[n] int64: row of the requests that each state belongs to."""


@dataclass(frozen=True, slots=True)
class Completions(Batch):
    """G completions for each of P requests. Row i of B = P*G belongs to request i // G of the requests beside it.

    A *step* is the unit of credit: a SID token (sid), a think block with its SID token (blocked), one item (slate).
    """

    tokens: Tensor = field(metadata=padded("right"))
    """[B, T] int64 completions, right-padded."""
    chosen: Tensor = field(metadata=padded("right"))
    """[B, T] bool: tokens the policy chose; neither padding nor forced (a forced token has one legal value)."""
    step_ids: Tensor = field(metadata=padded("right", -1))
    """[B, T] int64 in [-1, S); -1 is in no step (padding, end token)."""
    item_ids: Tensor = field(metadata=padded("right", -1))
    """[B, T] int64 in [-1, N): which item of the completion the token decides; -1 none (thinking, padding)."""
    codes: Tensor
    """[B, S] int64: what step s chose: a code of its level, or its catalogue row where steps are items; -1 invalid."""
    items: Tensor
    """[B, N] int64 decoded catalogue rows; -1 is no item."""
    logps: Tensor = field(metadata=padded("right"))
    """[B, T] float log-probability under the sampling policy in nats; 0 outside `chosen`."""
    group_size: int
    """G."""
    num_steps: int
    """S."""
    ref_logps: Tensor | None = field(default=None, metadata=padded("right"))
    """[B, T] float log-probability under the reference policy."""
    entropy: Tensor | None = field(default=None, metadata=padded("right"))
    """[B, T] float entropy of the legal distribution each token was drawn from, nats."""
    teacher_gap: Tensor | None = field(default=None, metadata=padded("right"))
    """[B, T] float log of the teacher's probability over the policy's, both over the legal set; 0 where neither is."""
    teacher_kl: Tensor | None = field(default=None, metadata=padded("right"))
    """[B, T] float KL divergence of the legal distribution each token was drawn from, from the teacher's, nats."""
    categories: Tensor | None = None
    """[B, N] int64 second-level category of each item; -1 unknown."""
    states: State | None = field(default=None, metadata=padded("right", -1))
    """Of [B, T]: where each token was drawn, which names its legal set. None: no layout wrote these."""
    closed: Tensor | None = None
    """[B, S] bool: the policy itself ended the block of step s, within its budget. None: a layout without thinking."""
    information: Tensor | None = None
    """[B, S] float: how much likelier the thinking makes the target's code of step s, nats; -inf where it failed, not a
    number where it was not asked. None: nobody asked."""

    def __post_init__(self) -> None:
        rows, length = self.tokens.shape
        if rows % self.group_size:
            raise ValueError(f"Completions: {rows} rows do not divide into groups of {self.group_size}")
        expect(self.items, "Completions.items", (rows, None), torch.int64)
        per_token, per_step = (rows, length), (rows, self.num_steps)
        wanted: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {
            **dict.fromkeys(("tokens", "step_ids", "item_ids"), (per_token, (torch.int64,))),
            **dict.fromkeys(("logps", "ref_logps", "entropy", "teacher_gap", "teacher_kl"), (per_token, FLOATS)),
            "chosen": (per_token, (torch.bool,)),
            "codes": (per_step, (torch.int64,)),
            "closed": (per_step, (torch.bool,)),
            "information": (per_step, FLOATS),
            "categories": (tuple(self.items.shape), (torch.int64,)),
        }
        for name, (shape, dtypes) in wanted.items():
            if getattr(self, name) is not None:
                expect(getattr(self, name), f"Completions.{name}", shape, *dtypes)

    def __len__(self) -> int:
        """Number of groups: P."""
        return self.tokens.shape[0] // self.group_size

    @property
    def written(self) -> Tensor:
        """[B, T] bool: tokens, no padding."""
        return torch.ones_like(self.chosen) if self.states is None else self.states.site >= 0

    @property
    def item_mask(self) -> Tensor:
        """[B, T] bool: tokens that decide an item (SID or title tokens, not thinking)."""
        return self.item_ids >= 0

    def groups(self, rows: Rows) -> Completions:
        """Whole groups: the unit of a micro-batch. `rows` selects requests."""
        return self.rows(_members(rows, len(self), self.group_size, self.tokens.device))


def _members(rows: Rows, groups: int, size: int, device: torch.device) -> Tensor:
    """Rows [n * size] of some of the groups."""
    return torch.arange(groups * size, device=device).view(groups, size)[rows].flatten()


@dataclass(frozen=True, slots=True)
class Rewards(Batch):
    """Rewards of completions by name, unweighted, and what they add up to."""

    values: Mapping[str, Tensor]
    """name -> float [B], [B, S] per step, or [B, N] per item."""
    weights: Mapping[str, float]
    """name -> its factor in every sum."""
    shaping: frozenset[str] = frozenset()
    """Names of the rewards per step that do not say whether the step matched (`format`)."""
    per_item: frozenset[str] = frozenset()
    """Names of the rewards per item; others with two axes are per step."""

    def __post_init__(self) -> None:
        if not self.values or self.values.keys() != self.weights.keys():
            raise ValueError(f"Rewards have values of {list(self.values)} and weights of {list(self.weights)}")
        rows, steps = next(iter(self.values.values())).shape[0], None
        for name, value in self.values.items():
            per_step = value.dim() > 1 and name not in self.per_item
            shape = (rows, steps if per_step else None)[: max(1, min(2, value.dim()))]
            expect(value, f"Rewards.values[{name!r}]", shape, *FLOATS)
            steps = value.shape[1] if per_step else steps

    @property
    def components(self) -> dict[str, Tensor]:
        """Name -> [B], added up over steps and items."""
        return {name: value.sum(1) if value.dim() > 1 else value for name, value in self.values.items()}

    @property
    def outcome(self) -> Tensor:
        """[B] weighted sum of all rewards."""
        return _total([self.weights[name] * value for name, value in self.components.items()])

    @property
    def steps(self) -> Tensor | None:
        """[B, S] weighted sum of the rewards that say whether a step matched; None if there are none."""
        return self._per_step(shaping=False)

    @property
    def step_shaping(self) -> Tensor | None:
        """[B, S] weighted sum of the rewards per step that are no matches; None if there are none."""
        return self._per_step(shaping=True)

    def _per_step(self, *, shaping: bool) -> Tensor | None:
        names = [name for name, value in self.values.items() if value.dim() > 1 and name not in self.per_item]
        parts = [self.weights[name] * self.values[name] for name in names if (name in self.shaping) == shaping]
        return _total(parts) if parts else None

    @property
    def absolute(self) -> Rewards:
        """The sizes of rewards and weights: their sums are what the rounding of the sums grows with."""
        weights = {name: abs(weight) for name, weight in self.weights.items()}
        return replace(self, values={name: value.abs() for name, value in self.values.items()}, weights=weights)


def _total(parts: list[Tensor]) -> Tensor:
    """Parts added up one by one, in their order."""
    return sum(parts[1:], start=parts[0])


@dataclass(frozen=True, slots=True)
class Scores(Batch):
    """What the current policy says of the tokens of completions."""

    logps: Tensor
    """[B, T] float with gradient, nats; 0 outside `Completions.chosen`."""
    entropy: Tensor | None = None
    """[B, T] float entropy over the legal set, nats."""


@dataclass(frozen=True, slots=True)
class Experience(Batch):
    """Completions with their credit: all that a loss needs, sliceable into micro-batches of whole groups.

    `weights` already hold every denominator, counted over the whole optimisation batch and all ranks, so losses (and
    gradients) of micro-batches add up to those of the whole.
    """

    completions: Completions
    advantages: Tensor
    """[B, T] float."""
    weights: Tensor
    """[B, T] float >= 0; 0 outside `Completions.chosen`."""
    mass: Tensor
    """[B] float: each row's share of the denominator, in the unit of `weights`; `renormalized` divides by its sum."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [B, ...]: what a surrogate prepared for its rows (bounds, diversities)."""

    def __post_init__(self) -> None:
        shape = tuple(self.completions.tokens.shape)
        expect(self.advantages, "Experience.advantages", shape, *FLOATS)
        expect(self.weights, "Experience.weights", shape, *FLOATS)
        expect(self.mass, "Experience.mass", shape[:1], *FLOATS)

    def __len__(self) -> int:
        """Number of groups: P."""
        return len(self.completions)

    def groups(self, rows: Rows) -> Experience:
        """Whole groups of the experience. `rows` selects requests."""
        return self.rows(_members(rows, len(self), self.completions.group_size, self.advantages.device))


@dataclass(frozen=True, slots=True)
class Ranking(Batch):
    """Ranked items per request, best first."""

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
        """[P] bool: the first k items are provably the best k of the whole catalogue, up to ties within rounding."""
        if self.bound is None or not 1 <= k <= self.items.shape[1]:
            bound = "no bound" if self.bound is None else "a bound"
            raise ValueError(
                f"the top {k} of a ranking with {self.items.shape[1]} places and {bound} is not certifiable"
            )
        return self.scores[:, k - 1] >= self.bound
