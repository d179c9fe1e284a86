"""Weights of tokens."""

from __future__ import annotations

import pytest
import torch

from genrl.errors import ConfigError
from genrl.objectives import ConstantLength, SequenceMean, StepMean, TokenMean
from genrl.objectives.reduction import reduction
from tests.helpers import assert_same
from tests.property.rollouts import LAYOUTS, sample


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums(layout: str) -> None:
    rollout = sample(layout).rollout
    chosen = rollout.chosen.sum(1)
    some = (chosen > 0).double()
    in_steps = (rollout.chosen & (rollout.step_ids >= 0)).any(1).double()
    assert_same(TokenMean()(rollout).sum(1), chosen.double())
    assert_same(SequenceMean()(rollout).sum(1), some)
    assert_same(StepMean()(rollout).sum(1), in_steps)
    assert_same(ConstantLength(8.0)(rollout).sum(1), chosen / 8.0)
    for weights in (TokenMean()(rollout), SequenceMean()(rollout), StepMean()(rollout), ConstantLength(8.0)(rollout)):
        assert weights.dtype == rollout.logps.dtype
        assert (weights[~rollout.chosen] == 0).all()


def test_constant_length_divides_by_rows_whatever_their_length() -> None:
    rollout = sample("blocked").rollout
    weights = ConstantLength(8.0)(rollout)
    assert_same(ConstantLength(8.0).mass(weights), torch.ones(16, dtype=torch.float64))
    assert_same(SequenceMean().mass(SequenceMean()(rollout)).sum(), 15.0)


@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_steps_share_a_row_and_the_chosen_tokens_of_a_step_share_it(layout: str) -> None:
    rollout = sample(layout).rollout
    assert (rollout.item_mask & ~rollout.chosen)[2:].any()  # a forced code leaves its share to its block
    weights = StepMean()(rollout).tolist()
    for row, (steps, mask) in enumerate(zip(rollout.step_ids.tolist(), rollout.chosen.tolist(), strict=True)):
        chosen = [step for step, free in zip(steps, mask, strict=True) if free]
        shares = [
            1 / len(set(chosen)) / chosen.count(step) if free else 0.0 for step, free in zip(steps, mask, strict=True)
        ]
        assert_same(weights[row], shares)


def test_a_step_that_is_forced_leaves_its_share_to_the_others() -> None:
    rollout = sample("sid").rollout
    weights = StepMean()(rollout)
    forced = ~rollout.chosen[:, 2] & rollout.chosen[:, 0]
    assert forced.any()
    assert_same(weights[forced][:, :2], torch.full_like(weights[forced][:, :2], 0.5))


def test_names() -> None:
    assert reduction("sequence") == SequenceMean()
    with pytest.raises(ConfigError, match=r"'median' is unknown\. Known: token, sequence\."):
        reduction("median")
