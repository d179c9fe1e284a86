"""What an objective is: rewards in, loss out; its pieces, and the objective that is made of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch
from torch import Tensor, nn

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.errors import ComponentError, ConfigError
from genrl.foreign import described
from genrl.ops import answered, group_view, masked_mean, world_size, world_sum
from genrl.options import option
from genrl.registry import Registry

Stats = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What rewards, rollout and layout provide; pieces compare it with what they need before a model is loaded."""

    rewards: tuple[str, ...]
    """Names of all configured rewards."""
    step_rewards: bool
    """Whether a step reward with weight says whether a step matched."""
    group_size: int
    """Completions per prompt."""
    items: int | None = None
    """Items per completion; None: not known yet."""
    categories: bool | None = None
    """Whether items have categories; None: not known yet."""
    thinking: bool | None = None
    """Whether the layout has thinking; None: not known yet."""
    teacher: bool | None = None
    """Whether there is a teacher; None: not known yet."""
    attributes: tuple[str, ...] | None = None
    """Further item columns that are kept (data.columns.attributes); None: not known yet."""


@dataclass
class Options:
    """Options that all objectives share."""

    kl_coef: float = option(0.0, ge=0)
    """Weight of the KL penalty to the reference policy; 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@dataclass
class GroupOptions(Options):
    """Options of objectives that compare the completions of a group."""

    ddof: int = option(1, ge=0, le=1)
    """Deviations divide by count - ddof."""
    eps: float = option(1e-6, ge=0)
    """Guard of the deviation."""


@dataclass
class ClipOptions(Options):
    """Options of objectives with a clipped ratio."""

    clip_low: float = option(0.2, ge=0, le=1)
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = option(0.2, ge=0)
    """The ratio is kept below 1 + clip_high."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss of one micro-batch with what may be logged about it."""

    loss: Tensor
    """Scalar with gradient. Losses of the micro-batches of an optimiser step are summed, never averaged."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars, only what was computed. Each is a mean over this micro-batch (tokens the policy chose, rows or
    groups), so micro-batches and ranks are averaged; names that end in `_max` are maxima, so the largest is kept."""


class Objective(nn.Module, ABC):
    """Rewards in, loss out, in two moments: `prepare` once per rollout, `loss` once per micro-batch.

    A module only so that state (SAGE's running diversity) is checkpointed and moved with the policy; it has no
    parameters. The trainer's order is::

        experience = objective.prepare(completions, rewards)  # whole rollout, all ranks together
        part = renormalized(experience.groups(rows))          # only if a rollout makes several optimiser steps
        part = objective.before_step(scores, part)            # only if objective.uses_scores
        for micro in ...: objective.loss(score(micro), micro).loss.backward()
        optimizer.step(); objective.after_step()
    """

    name: str = ""
    """What it is registered as, for messages; empty: it was made in Python."""
    uses_reference: bool = False
    """Whether completions need `ref_logps`: a reference policy is kept."""
    uses_teacher: bool = False
    """Whether completions need `teacher_gap` and `teacher_kl`: a teacher is kept."""
    uses_scores: bool = False
    """Whether `before_step` is called, with the scores of the whole mini-batch."""
    trains_on_targets: bool = False
    """Whether the completions are the targets themselves: one per prompt, or a group behind the policy's thinking."""
    dynamic_sampling: int = 0
    """Generation batches drawn at most to replace prompts without any gradient; 0: none is replaced."""
    repair: bool = False
    """Whether the target takes the place of one completion in groups that all earn the same without naming it."""
    category: str | None = None
    """The item column whose values `Completions.categories` numbers; None: data.columns.category."""

    @property
    def gradient_without_advantage(self) -> bool:
        """Whether a group without any advantage still gives gradient, so that the trainer must not skip it."""
        return True

    def missing(self, setting: Setting) -> Iterator[str]:
        """What the objective needs and the setting lacks, each with its remedy."""
        yield from ()

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        """What to know before training, such as options without effect.

        Args:
            updates: optimiser steps per rollout.
            in_words: whether completions name items by words, many tokens each.
        """
        yield from ()

    def check(self, setting: Setting, name: str) -> None:
        """Raise a ConfigError that names all that is `missing` for the objective of that name."""
        problems = dict.fromkeys(self.missing(setting))
        if problems:
            raise ConfigError("\n".join(f"objective {name!r} needs {problem}" for problem in problems))

    @abstractmethod
    def prepare(self, completions: Completions, rewards: Rewards) -> Experience:
        """Turn the rewards of a whole rollout into credit and weights. No gradient; may update state; collective."""

    def before_step(self, scores: Scores, batch: Experience) -> Experience:
        """Renew what depends on the current policy and the whole mini-batch; called if `uses_scores`."""
        return batch

    @abstractmethod
    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        """Loss of one micro-batch, some groups of what `prepare` returned; pure."""

    def after_step(self) -> None:
        """Move running statistics on; called after each optimiser step, and without effect when nothing is pending."""


class Piece:
    """A frozen dataclass of options around a pure function.

    A piece that keeps state holds an `nn.Module`, which the objective registers; if that module has an `after_step`
    method it is called after the optimiser step.
    """

    uses_reference = uses_teacher = uses_scores = trains_on_targets = False

    def missing(self, setting: Setting) -> Iterator[str]:
        """What the piece needs and the setting lacks; see `Objective.missing`."""
        yield from ()

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        """What to know before training; see `Objective.notices`."""
        yield from ()


class Credit(Piece, ABC):
    """Rewards -> advantages [B, T]; what is outside `Completions.chosen` is ignored."""

    @abstractmethod
    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor: ...


class Surrogate(Piece, ABC):
    """Advantages and log-probabilities -> the term per token that is maximised [B, T], with gradient, and stats."""

    def prepare(self, completions: Completions, advantages: Tensor) -> Stats:
        """Tensors [B, ...] that concern the whole rollout, for `Experience.extras`."""
        return {}

    def before_step(self, scores: Scores, batch: Experience) -> Stats:
        """Such tensors anew, for the policy as it is now; called if `uses_scores`."""
        return {}

    @abstractmethod
    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]: ...


class Reduction(Piece, ABC):
    """Completions -> weight per token [B, T] >= 0, 0 outside `chosen`, of the dtype of `logps`; not yet divided."""

    @abstractmethod
    def __call__(self, completions: Completions) -> Tensor: ...

    def mass(self, weights: Tensor) -> Tensor:
        """What each row adds to the denominator [B]; by default the sum of its weights."""
        return weights.sum(1)


class Penalty(Piece, ABC):
    """Scores -> cost per token [B, T] that is subtracted from the surrogate, its coefficient included, and stats."""

    @abstractmethod
    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]: ...


OBJECTIVES: Registry[Objective] = Registry("objective", "genrl.objectives", Objective)


class PolicyObjective(Objective):
    """Four pieces: loss = -sum_it w_it * (surrogate_it - sum of penalties_it); `renormalized` says how w is divided.

    With `drop_dead`, groups without any advantage have no weight; "kept": they leave the denominator too.
    """

    def __init__(
        self,
        credit: Credit,
        surrogate: Surrogate,
        reduction: Reduction,
        penalties: Sequence[Penalty] = (),
        dynamic_sampling: int = 0,
        drop_dead: str = "",
        repair: bool = False,
    ) -> None:
        super().__init__()
        self.credit = credit
        self.surrogate = surrogate
        self.reduction = reduction
        self.penalties = tuple(penalties)
        self.dynamic_sampling = dynamic_sampling
        self.drop_dead = drop_dead
        self.repair = repair
        self.pieces: tuple[Piece, ...] = (credit, surrogate, reduction, *self.penalties)
        self.state = nn.ModuleList(module for piece in self.pieces for module in _modules(piece))
        self.category = next((module.category for module in self.state if hasattr(module, "category")), None)  # type: ignore[assignment]
        self.uses_reference = any(piece.uses_reference for piece in self.pieces)
        self.uses_teacher = any(piece.uses_teacher for piece in self.pieces)
        self.uses_scores = any(piece.uses_scores for piece in self.pieces)
        self.trains_on_targets = any(piece.trains_on_targets for piece in self.pieces)

    def missing(self, setting: Setting) -> Iterator[str]:
        for piece in self.pieces:
            yield from piece.missing(setting)
        if self.repair and setting.thinking:
            yield (
                "a layout without thinking for repair=true, because nobody wrote the thinking before a target. "
                "Choose layout=sid, or leave repair out"
            )

    def notices(self, updates: int, in_words: bool = False) -> Iterator[str]:
        yield from dict.fromkeys(notice for piece in self.pieces for notice in piece.notices(updates, in_words))

    @property
    def gradient_without_advantage(self) -> bool:
        return bool(self.penalties)

    @torch.no_grad()
    def prepare(self, completions: Completions, rewards: Rewards) -> Experience:
        logps = completions.logps
        advantages = _answer(self.credit(completions, rewards), self.credit, "credit", logps).to(logps.dtype)
        advantages = advantages.masked_fill(~completions.chosen, 0)
        weights = _answer(self.reduction(completions), self.reduction, "reduction", logps)
        mass = _answer(self.reduction.mass(weights), self.reduction, "mass of reduction", logps[:, 0])
        if self.drop_dead:
            dead = ~_live(advantages, weights, completions.group_size).repeat_interleave(completions.group_size)
            weights = weights.masked_fill(dead[:, None], 0)
            mass = mass.masked_fill(dead, 0) if self.drop_dead == "kept" else mass
        extras = self.surrogate.prepare(completions, advantages)
        return renormalized(Experience(completions, advantages, weights, mass, extras))

    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        values, stats = _term(self.surrogate(scores, batch), self.surrogate, "surrogate", scores.logps)
        chosen = batch.completions.chosen
        stats = {"advantage_abs": masked_mean(batch.advantages.abs(), chosen), **stats}
        stats["dead_groups"] = 1 - live_prompts(batch).to(values.dtype).mean()
        for penalty in self.penalties:
            cost, told = _term(penalty(scores, batch), penalty, "penalty", scores.logps)
            values = values - cost
            stats |= told
        if scores.entropy is not None:
            stats["entropy"] = masked_mean(scores.entropy, chosen)
        loss = -(batch.weights * values).sum()
        return ObjectiveOutput(loss, {name: value.detach() for name, value in stats.items()})

    @torch.no_grad()
    def before_step(self, scores: Scores, batch: Experience) -> Experience:
        return replace(batch, extras={**batch.extras, **self.surrogate.before_step(scores, batch)})

    def after_step(self) -> None:
        for module in self.state:
            getattr(module, "after_step", lambda: None)()

    def __repr__(self) -> str:
        """The whole algorithm, one piece per line."""
        kinds = ("credit   ", "surrogate", "reduction", *["penalty  "] * len(self.penalties))
        lines = [f"  {kind} = {piece!r}" for kind, piece in zip(kinds, self.pieces, strict=True)]
        lines += [f"  dynamic_sampling = {self.dynamic_sampling}"] if self.dynamic_sampling else []
        lines += ["  repair = True"] if self.repair else []
        return "\n".join(["PolicyObjective(", *lines, ")"])


def _answer(value: object, piece: Piece, kind: str, like: Tensor) -> Tensor:
    """What a piece returned, which must have the shape and be on the device of `like`."""
    return answered(value, f"{kind} {type(piece).__name__}", tuple(like.shape), like.device)


def _term(value: object, piece: Piece, kind: str, like: Tensor) -> tuple[Tensor, Stats]:
    """What a surrogate or a penalty returned: a term per token, and statistics by name."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], Mapping):
        raise ComponentError(
            f"{kind} {type(piece).__name__} must return a pair, the term [B, T] and a dict of statistics; it returned "
            f"{described(value)}."
        )
    return _answer(value[0], piece, kind, like), dict(value[1])


def renormalized(experience: Experience) -> Experience:
    """Divide weights by what the rows at hand, on all ranks, add to the denominator: w = raw * ranks / sum(mass).

    Times the number of ranks because DDP averages gradients. Collective; used by `prepare`, and by the trainer on the
    part of a rollout that makes one optimiser step of several, which then weighs as much as the whole did.
    """
    total = world_sum(experience.mass.sum())
    scale = world_size() / torch.where(total > 0, total, torch.ones_like(total))
    return replace(experience, weights=experience.weights * scale, mass=experience.mass * scale)


def live_prompts(experience: Experience) -> Tensor:
    """Which prompts have any advantage with weight [P] bool; the others give no gradient but that of penalties."""
    return _live(experience.advantages, experience.weights, experience.completions.group_size)


def _live(advantages: Tensor, weights: Tensor, group_size: int) -> Tensor:
    return group_view((advantages != 0) & (weights > 0), group_size).flatten(1).any(1)


def _modules(piece: object) -> list[nn.Module]:
    """Modules inside a piece, however deep."""
    if isinstance(piece, nn.Module):
        return [piece]
    if not is_dataclass(piece):
        return []
    return [module for part in fields(piece) for module in _modules(getattr(piece, part.name))]
