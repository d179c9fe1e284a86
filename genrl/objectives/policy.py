"""The objective that is made of four pieces, and what concerns the weights of a whole optimisation batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor, nn

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives.base import Credit, Objective, ObjectiveOutput, Penalty, Reduction, Surrogate
from genrl.ops import group_view, masked_mean, world_size, world_sum


class PolicyObjective(Objective):
    """Four pieces: loss = -sum_it w_it * (surrogate_it - sum of penalties_it).

    Weights are divided by what all rows of the optimisation batch add to the denominator, on all ranks, and multiplied
    by the number of ranks because DDP averages gradients: w = raw * world / world_sum(mass).

    Args:
        credit: rewards -> advantages.
        surrogate: advantages and ratios -> term per token.
        reduction: mask -> weight per token.
        penalties: costs per token.
        dynamic_sampling: see `Objective.dynamic_sampling`.
        drop_dead: give groups without any advantage no weight; "kept": they leave the denominator too.
    """

    def __init__(
        self,
        credit: Credit,
        surrogate: Surrogate,
        reduction: Reduction,
        penalties: Sequence[Penalty] = (),
        dynamic_sampling: int = 0,
        drop_dead: str = "",
    ) -> None:
        super().__init__()
        self.credit = credit
        self.surrogate = surrogate
        self.reduction = reduction
        self.penalties = tuple(penalties)
        self.dynamic_sampling = dynamic_sampling
        self.drop_dead = drop_dead
        pieces = (credit, surrogate, reduction, *self.penalties)
        self.state = nn.ModuleList(module for piece in pieces for module in _modules(piece))
        self.needs = frozenset().union(*(piece.needs for piece in pieces))

    @property
    def gradient_without_advantage(self) -> bool:
        """Whether penalties act where there is no advantage."""
        return bool(self.penalties)

    @torch.no_grad()
    def prepare(self, rollout: Completions, rewards: Rewards) -> Experience:
        """Compute advantages, weights with their denominators over all ranks, and the surrogate's extras."""
        advantages = self.credit(rollout, rewards).to(rollout.logps.dtype)
        advantages = advantages.masked_fill(~rollout.chosen, 0)
        weights = self.reduction(rollout)
        mass = self.reduction.mass(weights)
        if self.drop_dead:
            dead = ~_live(advantages, weights, rollout.group_size).repeat_interleave(rollout.group_size)
            weights = weights.masked_fill(dead[:, None], 0)
            mass = mass.masked_fill(dead, 0) if self.drop_dead == "kept" else mass
        extras = self.surrogate.prepare(rollout, advantages)
        return renormalized(Experience(rollout, advantages, weights, mass, extras))

    def loss(self, scores: Scores, batch: Experience) -> ObjectiveOutput:
        """Weighted sum over tokens of penalties minus surrogate."""
        values, stats = self.surrogate(scores, batch)
        stats = {**self.credit.stats(batch), **stats, "dead_groups": 1 - live_prompts(batch).to(values.dtype).mean()}
        for penalty in self.penalties:
            cost, told = penalty(scores, batch)
            values = values - cost
            stats |= told
        if scores.entropy is not None:
            stats["entropy"] = masked_mean(scores.entropy, batch.completions.chosen)
        loss = -(batch.weights * values).sum()
        return ObjectiveOutput(loss, {name: value.detach() for name, value in stats.items()})

    @torch.no_grad()
    def before_step(self, scores: Scores, batch: Experience) -> Experience:
        """Renew the surrogate's extras (BAPO's bounds)."""
        return replace(batch, extras={**batch.extras, **self.surrogate.before_step(scores, batch)})

    def after_step(self) -> None:
        """Let pieces with running statistics move on."""
        for module in self.state:
            step = getattr(module, "after_step", None)
            if step is not None:
                step()

    def __repr__(self) -> str:
        """Show the whole algorithm, one piece per line."""
        lines = [
            f"  credit    = {self.credit!r}",
            f"  surrogate = {self.surrogate!r}",
            f"  reduction = {self.reduction!r}",
        ]
        lines += [f"  penalty   = {penalty!r}" for penalty in self.penalties]
        lines += [f"  dynamic_sampling = {self.dynamic_sampling}"] if self.dynamic_sampling else []
        return "\n".join(["PolicyObjective(", *lines, ")"])


def renormalized(experience: Experience) -> Experience:
    """Divide weights anew, for the rows at hand: `mass` sums to 1 per rank on average. Collective.

    Used by `prepare`, and by the trainer on the part of a rollout that makes one optimiser step of several.

    Example:
        A mini-batch of half the prompts weighs as much as the whole did: `renormalized(experience.groups(slice(0,
        4)))`.
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
