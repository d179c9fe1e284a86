"""What an objective is: rewards in, loss out; and what the pieces of the built-in ones have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.ops import masked_mean
from genrl.registry import Registry

Stats = dict[str, Tensor]


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

        experience = objective.prepare(rollout, rewards)            # whole rollout, all ranks together
        part = renormalized(experience.groups(rows))               # only if a rollout makes several optimiser steps
        part = objective.before_step(scores, part)                  # only if "scores" in objective.needs
        for micro in ...: objective.loss(score(micro), micro).loss.backward()
        optimizer.step(); objective.after_step()
    """

    needs: frozenset[str] = frozenset()
    """What has to be there, checked before a model is loaded: "steps" (a step reward), "components" (several rewards),
    "component:<name>" (that reward), "group" (group_size >= 2), "ref_logps" (a reference policy), "entropy" (entropies
    in rollout and scores), "scores" (`before_step` is called with the scores of the whole mini-batch), "slate" (several
    items per completion), "categories" (item categories), "thinking" (a layout with thinking), "targets" (the
    completions are the targets themselves, one per prompt)."""
    dynamic_sampling: int = 0
    """Generation batches drawn at most to replace prompts without any gradient; 0: none is replaced."""

    @property
    def gradient_without_advantage(self) -> bool:
        """Whether a group without any advantage still gives gradient, so that the trainer must not skip it."""
        return True

    @abstractmethod
    def prepare(self, rollout: Completions, rewards: Rewards) -> Experience:
        """Turn the rewards of a whole rollout into credit and weights. No gradient; may update state; collective.

        Args:
            rollout: P prompts with G completions each.
            rewards: rewards of the B = P*G completions.

        Returns:
            The experience, whose micro-batches are `experience.groups(rows)`.
        """

    @abstractmethod
    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        """Loss of one micro-batch; pure.

        Args:
            scores: what the policy says now of the micro-batch's tokens, [B, T].
            batch: some prompts of what `prepare` returned.
        """

    def before_step(self, scores: Scores, batch: Experience) -> Experience:
        """Renew what depends on the current policy and the whole mini-batch; called if "scores" is in `needs`.

        Args:
            scores: scores of the whole mini-batch, without gradient.
            batch: the mini-batch of one optimiser step.
        """
        return batch

    def after_step(self) -> None:
        """Move running statistics on; called after each optimiser step, and without effect when nothing is pending."""


class Piece:
    """Common manners of the pieces: what they need, and what they report.

    A piece is a frozen dataclass of options around a pure function. A piece that keeps state holds an `nn.Module`,
    which the objective registers; if that module has an `after_step` method it is called after the optimiser step.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What the piece needs; see `Objective.needs`."""
        return frozenset()


class Credit(Piece, ABC):
    """Rewards -> advantages."""

    @abstractmethod
    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]; what is outside the rollout's mask is ignored."""

    def stats(self, batch: Experience) -> Stats:
        """Scalars about the advantages of a micro-batch."""
        return {"advantage_abs": masked_mean(batch.advantages.abs(), batch.completions.chosen)}


class Surrogate(Piece, ABC):
    """Advantages and log-probabilities -> the term per token that is maximised."""

    def prepare(self, rollout: Completions, advantages: Tensor) -> Stats:
        """Return tensors [B, ...] that the loss will need and that concern the whole rollout."""
        return {}

    def before_step(self, scores: Scores, batch: Experience) -> Stats:
        """Return renewed extras [B, ...] for the policy as it is now; called if "scores" is in `needs`."""
        return {}

    @abstractmethod
    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the surrogate [B, T] with gradient (rows share a value if it is one per completion), and stats."""


class Reduction(Piece, ABC):
    """Mask -> weight per token, before division by what all rows add to the denominator."""

    @abstractmethod
    def __call__(self, rollout: Completions) -> Tensor:
        """Return weights [B, T] >= 0, 0 outside the mask, with the dtype of `rollout.logps`."""

    def mass(self, weights: Tensor) -> Tensor:
        """What each row adds to the denominator [B]; by default the sum of its weights."""
        return weights.sum(1)


class Penalty(Piece, ABC):
    """Scores -> cost per token that is subtracted from the surrogate."""

    @abstractmethod
    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        """Return the cost [B, T], its coefficient included, and stats."""


OBJECTIVES: Registry[Objective] = Registry("objective", "genrl.objectives")
