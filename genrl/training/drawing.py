"""Rollouts with their rewards, and the replacement of groups that nothing can be learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genrl.batches import Batch, Completions, Requests, Rewards, concatenate
from genrl.objectives import Objective, live_prompts
from genrl.ops import world_max
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
    for attempt in range(1, objective.dynamic_sampling):
        live = live_prompts(objective.prepare(rollout.completions, rollout.rewards))
        if int(world_max((~live).sum())) == 0:
            break
        rollout = replaced(rollout, live, draw(attempt))
        journal.add({"rollout/resampled": float((~live).float().mean())})
    return rollout


def replaced(rollout: Rollout, live: Tensor, further: Rollout) -> Rollout:
    """The rollout with the first groups of a further one in place of the groups that are not `live` [P]."""
    count = live.numel()
    places = torch.arange(count, device=live.device)
    dead = (~live).nonzero().flatten()
    places[dead] = count + torch.arange(dead.numel(), device=live.device)
    return concatenate(rollout, further).groups(places)
