"""Credit for the best of k against all subsets, and against the formulas for rewards of 0 and 1."""

import math
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from genrl.batches import Rewards
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, BestOfGroup, OutcomeCredit, PassAtK, Setting
from tests.helpers import assert_same
from tests.unit.objectives.loops import assert_as_in_the_loop, rollout

GROUPS = {
    "one hit": [[0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]],
    "graded": [[0.3, 2.0, 0.3, 1.1, -0.4], [0.7, 0.7, 0.1, 2.5, 2.5]],
    "dead": [[0.1, 0.1, 0.1, 0.1, 0.1], [5.0, 1.0, 2.0, 3.0, 4.0]],
}
"""Rewards of two prompts with five completions each."""


def pass_at_k(values: list[float], k: int) -> list[float]:
    """By all subsets."""
    subsets = list(combinations(range(len(values)), k))
    best = [max(values[i] for i in subset) for subset in subsets]
    mean, deviation = fmean(best), pstdev(best)
    own = [fmean(b for b, subset in zip(best, subsets, strict=True) if i in subset) for i in range(len(values))]
    return [0.0 if deviation < 1e-12 else (value - mean) / (deviation + 1e-6) for value in own]


def best_of(values: list[float]) -> list[float]:
    first, second = sorted(values, reverse=True)[:2]
    return [first - second if value == first else 0.0 for value in values]


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k(case, k):
    rewards = Rewards({"r": torch.tensor(GROUPS[case], dtype=torch.float64).flatten()}, {"r": 1.0})
    wanted = [[value] * 3 for group in GROUPS[case] for value in pass_at_k(group, k)]
    assert_as_in_the_loop("grpo", {"compare": "pass_at_k", "k": k}, rewards, wanted, "sequence")


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize(("name", "reduction"), [("grpo", "sequence"), ("grpo", "token")])
def test_best_of_the_group(case, name, reduction):
    rewards = Rewards({"r": torch.tensor(GROUPS[case], dtype=torch.float64).flatten()}, {"r": 1.0})
    wanted = [[value] * 3 for group in GROUPS[case] for value in best_of(group)]
    assert_as_in_the_loop(name, {"compare": "best", "reduction": reduction}, rewards, wanted, reduction)


@pytest.mark.parametrize(("misses", "k"), [(7, 4), (6, 2), (1, 4), (5, 3), (4, 4)])
def test_rewards_of_zero_and_one_get_the_analytical_advantages(misses, k):
    size = 8
    values = torch.tensor([0.0] * misses + [1.0] * (size - misses), dtype=torch.float64)
    found = PassAtK(k, eps=0.0)(values, size)
    mean = 1 - math.comb(misses, k) / math.comb(size, k)
    if mean == 1:  # every subset has a hit
        assert (found == 0).all()
        return
    deviation = math.sqrt(mean * (1 - mean))
    assert_same(found[-1], (1 - mean) / deviation)
    missed = math.comb(misses - 1, k - 1) / math.comb(size - 1, k - 1)
    assert_same(found[0], (1 - mean - missed) / deviation)


@pytest.mark.parametrize("compare", ["pass_at_k", "best"])
def test_rewards_that_are_equal_but_for_rounding_are_equal(compare):
    drawn, _ = rollout()
    parts = 10 + 10 * torch.rand(2, 10, generator=torch.Generator().manual_seed(4))
    rewards = Rewards({"a": parts[0], "b": 0.3 - parts[0]}, {"a": 1.0, "b": 1.0})
    objective = OBJECTIVES.build("grpo", {"compare": compare, "kl_coef": 0.0})
    experience = objective.prepare(drawn.to(torch.float32), rewards)
    assert float(rewards.outcome.std()) > 0
    assert (experience.advantages == 0).all()


@pytest.mark.parametrize(
    ("options", "size", "remedy"),
    [
        ({"compare": "pass_at_k", "k": 4}, 4, r"more than objective\.k=4 completions .* rollout\.group_size is 4\."),
        ({"compare": "best"}, 1, r"compare=best; rollout\.group_size is 1"),
    ],
)
def test_groups_that_are_too_small_are_told(options, size, remedy):
    objective = OBJECTIVES.build("grpo", options)
    with pytest.raises(ConfigError, match=remedy):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=size), "grpo")


@pytest.mark.parametrize("name", ["grpo", "gbpo", "dapo", "gspo", "ecpo", "cispo", "bapo"])
def test_every_objective_with_one_advantage_per_completion_has_these_options(name):
    objective: Any = OBJECTIVES.build(name, {"compare": "pass_at_k", "k": 3, "eps": 0.1, "repair": True})
    assert objective.credit == OutcomeCredit(PassAtK(3, 0.1))
    assert objective.repair
    plain: Any = OBJECTIVES.build(name, {"compare": "best"})
    assert plain.credit == OutcomeCredit(BestOfGroup())
    assert not plain.repair


def test_what_cannot_be_combined_is_told():
    with pytest.raises(ConfigError, match=r"compare=best compares the completions of a group, advantage=sign does not"):
        OBJECTIVES.build("gbpo", {"compare": "best", "advantage": "sign"})
    objective = OBJECTIVES.build("grpo", {"repair": True})
    with pytest.raises(ConfigError, match=r"a layout without thinking for repair=true"):
        objective.check(Setting(("exact_match",), step_rewards=False, group_size=4, thinking=True), "grpo")
    assert "repair = True" in repr(objective)
