"""GBPO's options and ratios."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genrl.objectives import OBJECTIVES, GradientBounded, GroupNorm, KLPenalty, OutcomeCredit, SignCredit
from genrl.objectives.gbpo import bounded_ratio, item_segments
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_defaults_differ_from_grpo_by_the_surrogate_alone() -> None:
    gbpo, grpo = OBJECTIVES.build("gbpo"), OBJECTIVES.build("grpo", {"kl_coef": 0.0})
    assert gbpo.surrogate == GradientBounded("token")
    assert (gbpo.credit, gbpo.reduction, gbpo.penalties) == (grpo.credit, grpo.reduction, grpo.penalties)


def test_options() -> None:
    options = {"level": "item", "advantage": "sign", "positive_quantile": 0.5, "negative_reward": -1.0, "kl_coef": 0.2}
    objective = OBJECTIVES.build("gbpo", options)
    assert objective.credit == SignCredit(0.5, -1.0)
    assert objective.surrogate == GradientBounded("item")
    assert objective.penalties == (KLPenalty(0.2),)
    assert OBJECTIVES.build("gbpo", {"ddof": 0, "eps": 0.1}).credit == OutcomeCredit(GroupNorm(ddof=0, eps=0.1))


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
    segments = item_segments(rollout)
    inside = rollout.chosen & rollout.item_mask
    assert torch.equal(segments[inside], rollout.item_ids[inside])
    assert (segments[~inside] == -1).all()
    assert set(item_segments(sample("blocked").rollout).unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("level", ["token", "item"])
def test_it_never_asks_for_a_reference(level: str) -> None:
    assert not GradientBounded(level).uses_reference


def test_sign_credit() -> None:
    batch = sample("sid", prompts=2)
    outcome = torch.tensor([3.0, 2.0, 1.0, 0.0, 2.0, 0.0, 3.0, -1.0], dtype=torch.float64)
    batch = batch.with_rewards({"hit": outcome})
    rollout = replace(batch.rollout, chosen=torch.ones_like(batch.rollout.chosen))
    assert_same(SignCredit()(rollout, batch.rewards)[:, 0], [1.0, 0.0, 0.0, -1.0, 0.0, -1.0, 1.0, -1.0])
    strict = SignCredit(quantile=0.0, negative=2.0)(rollout, batch.rewards)[:, 0]
    assert_same(strict, [1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0])
