"""GBPO's ratios and signs."""

from dataclasses import replace

import torch

from genrl.objectives import SignCredit
from genrl.objectives.gbpo import bounded_ratio, item_segments
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_rare_bad_tokens_pull_hardly_at_all():
    rare = torch.tensor([1e-6], dtype=torch.float64).log()
    assert_same(bounded_ratio(rare, rare, -torch.ones(1, dtype=torch.float64)), [1e-6 / (1 - 1e-6)])
    assert_same(bounded_ratio(rare, rare, torch.ones(1, dtype=torch.float64)), [1.0])


def test_segments_are_the_chosen_item_tokens():
    rollout = sample("slate").rollout
    segments = item_segments(rollout)
    inside = rollout.chosen & rollout.item_mask
    assert torch.equal(segments[inside], rollout.item_ids[inside])
    assert (segments[~inside] == -1).all()
    assert set(item_segments(sample("blocked").rollout).unique().tolist()) == {-1, 0}


def test_sign_credit():
    batch = sample("sid", prompts=2)
    outcome = torch.tensor([3.0, 2.0, 1.0, 0.0, 2.0, 0.0, 3.0, -1.0], dtype=torch.float64)
    batch = batch.with_rewards({"hit": outcome})
    rollout = replace(batch.rollout, chosen=torch.ones_like(batch.rollout.chosen))
    assert_same(SignCredit()(rollout, batch.rewards)[:, 0], [1.0, 0.0, 0.0, -1.0, 0.0, -1.0, 1.0, -1.0])
    strict = SignCredit(quantile=0.0, negative=2.0)(rollout, batch.rewards)[:, 0]
    assert_same(strict, [1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0])
