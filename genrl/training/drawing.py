"""Rollouts with their rewards, and what is done about groups that nothing can be learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from genrl.batches import Batch, Completions, Requests, Rewards, concatenate
from genrl.objectives import Objective, live_prompts
from genrl.objectives.answers import prepared
from genrl.objectives.credit import ROUNDING
from genrl.ops import group_view, world_gather, world_max, world_rank, world_size
from genrl.training.journal import Journal


@dataclass(frozen=True, slots=True)
class Rollout(Batch):
    """Requests, what was written for them, and what it earned."""

    requests: Requests
    completions: Completions
    rewards: Rewards

    def groups(self, rows: Tensor) -> Rollout:
        """Whole groups; `rows` selects requests."""
        size = self.completions.group_size
        members = (rows[:, None] * size + torch.arange(size, device=rows.device)).flatten()
        return Rollout(self.requests.rows(rows), self.completions.groups(rows), self.rewards.rows(members))


def draw_alive(draw: Callable[[int], Rollout], objective: Objective, journal: Journal) -> Rollout:
    """A rollout in which groups without any gradient are replaced, as far as the objective wants it.

    Ranks draw together: as long as one of them has such a group, all do. `draw` makes a rollout of an attempt's own
    requests; the journal receives the share of groups that were replaced.
    """
    rollout = draw(0)
    count = len(rollout.completions.tokens)
    drawn = count
    for attempt in range(1, objective.dynamic_sampling):
        live = live_prompts(prepared(objective, rollout.completions, rollout.rewards))
        if int(world_max((~live).sum())) == 0:
            break
        rollout = replaced(rollout, live, draw(attempt))
        drawn += count
        journal.add({"rollout/resampled": float((~live).float().mean())})
    journal.add({"rollout/drawn": float(drawn * world_size())})
    return rollout


def hopeless(rollout: Rollout) -> Tensor:
    """[P] bool: groups whose completions all earn the same, up to rounding, and none of which names the target."""
    outcome, sizes = (
        group_view(each.outcome, rollout.completions.group_size) for each in (rollout.rewards, rollout.rewards.absolute)
    )
    equal = outcome.amax(1) - outcome.amin(1) <= ROUNDING * sizes.amax(1)
    named = rollout.completions.items.view(len(rollout.requests), -1)
    return equal & ~(named == rollout.requests.wanted.items[:, :1]).any(1)


def with_targets(completions: Completions, groups: Tensor, targets: Completions) -> Completions:
    """Completions with the target in the place of the last one of some groups.

    Args:
        completions: G for each of P requests.
        groups: [n] which groups.
        targets: one for each of these requests, with their log-probabilities under the policy.
    """
    size = completions.group_size
    if completions.teacher_gap is not None:  # a teacher judges what the policy wrote
        nothing = torch.zeros_like(targets.logps)
        targets = replace(targets, teacher_gap=nothing, teacher_kl=nothing)
    places = torch.arange(len(completions.tokens), device=groups.device)
    places[groups * size + size - 1] = len(places) + torch.arange(len(groups), device=groups.device)
    return replace(concatenate(replace(completions, group_size=1), targets).rows(places), group_size=size)


def replaced(rollout: Rollout, live: Tensor, further: Rollout) -> Rollout:
    """The rollout with the first groups of a further one in place of the groups that are not `live` [P].

    Ranks do it together: the dead groups of all of them, in the order of ranks, get the first groups of all their
    further rollouts, as they would on one process.
    """
    count, dead = live.numel(), (~live).nonzero().flatten()
    missing = world_gather(dead.numel())
    before = count + sum(missing[: world_rank()])
    places = torch.arange(count, device=live.device)
    places[dead] = before + torch.arange(dead.numel(), device=live.device)
    return concatenate(rollout, _first_groups(further, sum(missing), live.device)).groups(places)


def _first_groups(rollout: Rollout, count: int, device: torch.device) -> Rollout:
    """The first groups of the rollouts of all ranks, on each of them."""
    share = len(rollout.requests)
    own = torch.arange(min(max(count - world_rank() * share, 0), share), device=device)
    if world_size() == 1:
        return rollout.groups(own)
    parts = world_gather(rollout.groups(own).each(Tensor.cpu) if len(own) else None)
    return reduce(concatenate, [part for part in parts if part is not None]).each(lambda value: value.to(device))
