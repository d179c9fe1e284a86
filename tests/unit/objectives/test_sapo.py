"""The options of sapo."""

from __future__ import annotations

import pytest
import torch

from genrl.objectives import (
    OBJECTIVES,
    ClippedRatio,
    Credit,
    FixedBounds,
    GroupNorm,
    OutcomeCredit,
    Reduction,
    SequenceMean,
    StepCredit,
    StepMean,
    TokenMean,
)
from tests.property.rollouts import sample


def test_defaults_are_the_paper() -> None:
    objective = OBJECTIVES.build("sapo")
    assert objective.credit == StepCredit(GroupNorm(guard="clamp"), "per_level", "think_and_sid")
    assert objective.surrogate == ClippedRatio("token", FixedBounds(0.2, 0.2))
    assert objective.reduction == StepMean()
    assert objective.needs == {"steps", "group", "ref_logps"}


def test_the_code_of_the_authors() -> None:
    objective = OBJECTIVES.build("sapo", {"scope": "think_only", "reduction": "token", "dual_clip": 3.0})
    assert objective.credit == StepCredit(GroupNorm(guard="clamp"), scope="think_only")
    assert objective.reduction == TokenMean()
    assert objective.surrogate.dual_clip == 3.0
    assert "thinking" in objective.needs


@pytest.mark.parametrize(
    ("ablation", "credit", "reduction"),
    [
        ("no_step_advantage", StepCredit(GroupNorm(), per_step=False), StepMean()),
        ("no_match_reward", StepCredit(GroupNorm(guard="clamp"), component="hit"), StepMean()),
        ("outcome", OutcomeCredit(GroupNorm(), "hit"), SequenceMean()),
    ],
)
def test_ablations(ablation: str, credit: Credit, reduction: Reduction) -> None:
    objective = OBJECTIVES.build("sapo", {"ablation": ablation, "exact_reward": "hit"})
    assert objective.credit == credit
    assert objective.reduction == reduction
    assert ("steps" in objective.needs) == (ablation == "no_step_advantage")


def test_a_near_miss_is_praised_for_the_steps_it_got_right() -> None:
    match = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    exact = match.prod(1)
    batch = sample("sid", prompts=1)
    batch = batch.with_rewards(outcome=exact, steps=match, components={"exact_match": exact})
    assert (batch.experience(OBJECTIVES.build("sapo")).advantages[0, :2] > 0).all()
    assert (batch.experience(OBJECTIVES.build("grpo")).advantages[0, :2] < 0).all()
