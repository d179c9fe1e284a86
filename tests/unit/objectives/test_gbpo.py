"""GBPO's ratios and signs."""

from dataclasses import replace

import pytest
import torch

from genrl.batches import Rewards, Scores
from genrl.objectives import OBJECTIVES, SignCredit
from genrl.objectives.gbpo import bounded_ratio, item_segments
from tests.helpers import assert_same
from tests.property.rollouts import sample, single_tokens


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


def signs(outcome: list[float], **options: float) -> list[float]:
    zeros = torch.zeros(len(outcome), 1, dtype=torch.int64)
    drawn = single_tokens(zeros, zeros.double(), len(outcome))
    rewards = Rewards({"hit": torch.tensor(outcome, dtype=torch.float64)}, {"hit": 1.0})
    return SignCredit(**options)(drawn, rewards)[:, 0].tolist()


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        ([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, -1.0]),  # three quarters share the largest reward
        ([1.0, 1.0, 1.0, 1.0], [1.0] * 4),
        ([0.0] * 4, [-1.0] * 4),
        ([2.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]),  # a quarter is strictly better than the others
        ([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 4 + [0.0] * 4),  # an eighth is better than the twos
        ([0.1 + 0.2, 0.3, 0.3, 0.2], [1.0, 1.0, 1.0, 0.0]),  # equal up to rounding
    ],
)
def test_fewer_than_a_quarter_may_be_strictly_better(outcome, wanted):
    assert signs(outcome) == wanted


def test_a_share_of_the_batch_is_counted_without_rounding():
    outcome = [10.0 - place for place in range(10)]
    assert signs(outcome, quantile=0.7) == [1.0] * 3 + [0.0] * 7
    assert signs(outcome, quantile=1.0) == [0.0] * 10
    assert signs(outcome, quantile=0.0) == [1.0] * 10


def test_training_on_signs_goes_on_when_many_hit():
    """One prompt, four items, one of them right: where ties at the top had no sign, p ended at .48."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    objective = OBJECTIVES.build("gbpo", {"advantage": "sign"})
    for _ in range(60):
        items = torch.multinomial(logits.detach().exp(), 32, replacement=True, generator=draw)[:, None]
        logps = logits.log_softmax(0)[items]
        drawn = single_tokens(items, logps.detach(), 32)
        experience = objective.prepare(drawn, Rewards({"worth": worth[items[:, 0]]}, {"worth": 1.0}))
        (gradient,) = torch.autograd.grad(objective.loss(Scores(logps), experience).loss, logits)
        logits.data -= gradient
    assert logits.softmax(0)[0].item() > 0.9
