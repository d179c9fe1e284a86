"""Diversity, its running mean, and what SAGE makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from genrl.objectives import OBJECTIVES, Diversity
from genrl.objectives.sage import category_entropy, homogeneity_factor
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_entropy_by_hand() -> None:
    categories = torch.tensor(
        [[0, 0, 1, 1], [5, 5, 5, 5], [0, 1, 2, 3], [4, -1, -1, 4], [4, -1, 2, -1], [-1, -1, -1, -1]]
    )
    expected = [math.log(2), 0.0, math.log(4), 0.0, math.log(2), 0.0]
    assert_same(category_entropy(categories, torch.float64), expected)


def test_lambda_grows_only_below_the_mean() -> None:
    diversity = torch.tensor([0.2, 1.0, 1.5], dtype=torch.float64)
    found = homogeneity_factor(diversity, torch.tensor(1.0, dtype=torch.float64), 0.5)
    assert_same(found, [1 + 0.5 * math.tanh(0.8), 1.0, 1.0])


@pytest.mark.parametrize(("layout", "source"), [("slate", "slate"), ("sid", "group"), ("blocked", "group")])
def test_auto_looks_at_the_slate_if_there_is_one(layout: str, source: str) -> None:
    rollout = sample(layout).rollout
    assert_same(Diversity("auto").measure(rollout), Diversity(source).measure(rollout))


def test_group_diversity_is_that_of_all_completions_of_the_prompt() -> None:
    rollout = sample("slate").rollout
    measured = Diversity("group").measure(rollout)
    expected = category_entropy(rollout.categories.view(4, -1), torch.float64)
    assert_same(measured, expected.repeat_interleave(4))


def test_policy_diversity_is_the_mean_entropy_of_chosen_tokens() -> None:
    rollout = sample("blocked").rollout
    measured = Diversity("policy").measure(rollout)
    assert_same(measured[0], rollout.entropy[0][rollout.chosen[0]].mean())
    assert_same(measured[1], 0.0)


def test_the_mean_starts_at_the_first_rollout_and_moves_after_the_step() -> None:
    diversity = Diversity("slate", decay=0.9)
    first, second = sample("slate", seed=0).rollout, sample("slate", seed=1).rollout
    measured, mean = diversity.prepare(first)
    assert_same(mean, measured.mean())
    diversity.after_step()
    assert_same(diversity.mean, measured.mean())
    later, unmoved = diversity.prepare(second)
    assert_same(unmoved, measured.mean())
    diversity.after_step()
    expected = 0.9 * measured.mean() + 0.1 * later.mean()
    assert_same(diversity.mean, expected)
    diversity.after_step()
    assert_same(diversity.mean, expected)


def test_state_survives_a_checkpoint_and_half_precision() -> None:
    batch = sample("slate")
    objective = OBJECTIVES.build("sage", {"ema_init": 0.9})
    objective.prepare(batch.rollout, batch.rewards)
    saved = objective.state_dict()
    assert len(saved) == 2
    other = OBJECTIVES.build("sage")
    other.load_state_dict(saved)
    other.to(torch.bfloat16)
    objective.after_step()
    other.after_step()
    for key, value in objective.state_dict().items():
        if key.endswith("mean"):
            assert value.dtype == other.state_dict()[key].dtype == torch.float64
            assert_same(other.state_dict()[key], value)
            assert value != 0.9
