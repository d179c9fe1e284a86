from __future__ import annotations

import torch

from genrl.batches import Requests
from genrl.training.drawing import Rollout, replaced
from tests.property.rollouts import sample


def make(seed: int) -> Rollout:
    """A rollout whose requests are numbered from 100 * seed on."""
    drawn = sample("sid", seed=seed)
    tokens = torch.arange(len(drawn.rollout))[:, None] + 100 * seed
    requests = Requests(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens[:, :0])
    return Rollout(requests, drawn.rollout, drawn.rewards)


def test_groups_that_are_not_live_make_room_for_the_first_of_a_further_rollout() -> None:
    first, further = make(0), make(1)
    live = torch.ones(len(first.requests), dtype=torch.bool)
    live[[0, 2]] = False
    found = replaced(first, live, further)
    numbers = first.requests.tokens[:, 0].tolist()
    assert found.requests.tokens[:, 0].tolist() == [100, numbers[1], 101, *numbers[3:]]
    size = first.completions.group_size
    for place, (source, group) in enumerate([(further, 0), (first, 1), (further, 1)]):
        rows, theirs = slice(place * size, (place + 1) * size), slice(group * size, (group + 1) * size)
        assert found.completions.tokens[rows].tolist() == source.completions.tokens[theirs].tolist()
        assert found.rewards.outcome[rows].tolist() == source.rewards.outcome[theirs].tolist()
