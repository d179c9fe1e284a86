"""BAPO's search for bounds."""

import pytest
import torch

from genrl.batches import Scores
from genrl.errors import ConfigError
from genrl.objectives import OBJECTIVES, AdaptiveBounds, Range
from tests.helpers import assert_same
from tests.property.rollouts import sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": [0.6]}, r"'low': \[0\.6\] must be a first and a last value, e\.g\. \[0\.6,0\.8\]"),
        ({"high": [2.0, 1.2]}, r"high=\[2\.0, 1\.2\] is no range\. The first must not be larger"),
        ({"step_low": 0.0}, r"'step_low': 0\.0 must be above 0"),
    ],
)
def test_no_range(options, message):
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build("bapo", options)


def bounds(target: float, **options: str) -> AdaptiveBounds:
    return AdaptiveBounds(Range(0.6, 0.8, 0.1), Range(1.2, 1.6, 0.2), target, **options)


def test_path_of_code_and_paper():
    assert_same(bounds(1.0).path(), [(0.6, 1.2), (0.7, 1.2), (0.8, 1.2), (0.8, 1.4), (0.8, 1.6)])
    assert_same(bounds(1.0, variant="paper").path(), [(0.6, 1.2), (0.6, 1.4), (0.6, 1.6), (0.7, 1.6), (0.8, 1.6)])


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_first_pair_that_reaches_the_target_else_the_last(variant):
    batch = sample("blocked", spread=1.0)
    advantages = batch.experience(OBJECTIVES.build("grpo")).advantages
    ratios = (batch.logps - batch.rollout.logps).exp()
    easy = bounds(0.0, variant=variant)
    balance = easy.balance(ratios, advantages, batch.rollout)
    for target in [*balance.tolist(), 1e9]:
        search = bounds(target, variant=variant)
        place = next((i for i, value in enumerate(balance.tolist()) if value >= target), len(balance) - 1)
        found = search.search(ratios, advantages, batch.rollout)
        assert_same(found["clip_low"], torch.full((16,), search.path()[place][0], dtype=torch.float64))
        assert_same(found["clip_high"], torch.full((16,), search.path()[place][1], dtype=torch.float64))


def test_only_active_tokens():
    batch = sample("blocked", spread=2.0)
    advantages = batch.experience(OBJECTIVES.build("grpo")).advantages
    ratios = (batch.logps - batch.rollout.logps).exp()
    balance = bounds(1.0, count="active").balance(ratios, advantages, batch.rollout)
    sizes = (ratios * advantages.abs())[batch.rollout.chosen]
    signs, seen = advantages[batch.rollout.chosen], ratios[batch.rollout.chosen]
    positive, negative = sizes[(signs > 0) & (seen <= 1.2)].sum(), sizes[(signs < 0) & (seen >= 0.6)].sum()
    assert_same(balance[0], positive / (negative + 1e-8))


def test_prepare_takes_the_policy_that_sampled():
    batch, objective = sample("blocked", spread=2.0), OBJECTIVES.build("bapo")
    assert objective.uses_scores
    prepared = objective.prepare(batch.rollout, batch.rewards)
    renewed = objective.before_step(Scores(batch.rollout.logps), prepared)
    for key, value in prepared.extras.items():
        assert_same(renewed.extras[key], value)
