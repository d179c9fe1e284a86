"""GBPO's ratios."""

from __future__ import annotations

import pytest
import torch

from genrl.objectives import GradientBounded
from genrl.objectives.gbpo import bounded_ratio, item_segments
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_by_hand() -> None:
    """Old .4 and ratio 1.27 with A < 0; old .4 and ratio 1.53 with A > 0; ratio .57 with A > 0."""
    old = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64).log()
    new = old + torch.tensor([1.27, 1.53, 0.57], dtype=torch.float64).log()
    found = bounded_ratio(new, old, torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    assert_same(found, [0.508 / 0.492, 1.0, 0.57])


def test_rare_bad_tokens_pull_hardly_at_all() -> None:
    rare = torch.tensor([1e-6], dtype=torch.float64).log()
    assert_same(bounded_ratio(rare, rare, -torch.ones(1, dtype=torch.float64)), [1e-6 / (1 - 1e-6)])
    assert_same(bounded_ratio(rare, rare, torch.ones(1, dtype=torch.float64)), [1.0])


def test_segments_are_the_chosen_item_tokens() -> None:
    rollout = sample("slate").rollout
    segments, count = item_segments(rollout)
    assert count == 3
    inside = rollout.chosen & rollout.item_mask
    assert torch.equal(segments[inside], rollout.item_ids[inside])
    assert (segments[~inside] == -1).all()
    single, one = item_segments(sample("blocked").rollout)
    assert one == 1
    assert set(single.unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("level", ["token", "item"])
def test_it_never_asks_for_a_reference(level: str) -> None:
    assert not GradientBounded(level).uses_reference
