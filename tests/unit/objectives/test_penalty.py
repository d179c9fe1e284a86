"""KL penalty and entropy bonus."""

from __future__ import annotations

import pytest
import torch

from genrl.batches import Scores
from genrl.objectives import OBJECTIVES, EntropyBonus, KLPenalty, penalties
from genrl.objectives.penalty import k3
from tests.helpers import assert_same
from tests.property.rollouts import sample


def test_k3_and_its_gradient() -> None:
    new = torch.tensor([-0.5, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    values = k3(new, old)
    (slope,) = torch.autograd.grad(values.sum(), new)
    ratios = (old - new).exp().detach()
    assert_same(values, ratios - (old - new) - 1)
    assert_same(slope, 1 - ratios)
    assert values[1] == 0


def test_weights_of_zero_cost_nothing() -> None:
    assert penalties(0.0, 0.0) == ()
    assert penalties(0.1, 0.0) == (KLPenalty(0.1),)
    assert penalties(0.0, -0.2) == (EntropyBonus(-0.2),)
    assert penalties(0.1, 0.2) == (KLPenalty(0.1), EntropyBonus(0.2))


def test_the_bonus_has_a_gradient() -> None:
    batch = sample("blocked")
    objective = OBJECTIVES.build("grpo", {"entropy_coef": 0.5, "kl_coef": 0.0})
    experience = batch.experience(objective)
    entropy = batch.entropy.clone().requires_grad_()
    loss = objective.loss(Scores(batch.logps, entropy), experience).loss
    (slope,) = torch.autograd.grad(loss, entropy)
    assert_same(slope, -0.5 * experience.weights)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_kl_and_entropy_weights_are_options(name: str) -> None:
    batch = sample("blocked")
    objective = OBJECTIVES.build(name, {"kl_coef": 0.5, "entropy_coef": 0.25})
    assert objective.uses_reference
    assert objective.gradient_without_advantage
    plain = OBJECTIVES.build(name, {"kl_coef": 0.0})
    assert not plain.uses_reference
    assert not plain.gradient_without_advantage
    experience = batch.experience(plain)
    difference = batch.run(objective, experience)[0] - batch.run(plain, experience)[0]
    kl = torch.expm1(batch.rollout.ref_logps - batch.logps) - (batch.rollout.ref_logps - batch.logps)
    assert_same(difference, (experience.weights * (0.5 * kl - 0.25 * batch.entropy)).sum())
