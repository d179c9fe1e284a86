"""What a reward of a user may return, and how everything else is named."""

import numpy as np
import pytest
import torch

from genrl.errors import ComponentError
from genrl.rewards import Reward, Verifier
from genrl.rewards.answers import as_values
from tests.helpers import assert_same
from tests.unit.rewards.test_base import TARGETS, context, requests, rollout

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([0.0, 1.0, 0.5, 0.0]),
        [0, 1, 0.5, False],
        (0.0, 1.0, 0.5, 0.0),
        np.array([0.0, 1.0, 0.5, 0.0]),
        [torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.0)],
    ],
)
def test_numbers_of_the_right_shape_are_taken(value):
    found = as_values(value, "mine", "outcome", (4,), CPU)
    assert found.dtype == torch.float32
    assert_same(found, torch.tensor([0.0, 1.0, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"must return \[4\] numbers, one per completion, as a tensor of float32 on cpu .*it returned None"),
        ([1.0, 2.0], "returned a list of length 2"),
        ([[1.0], [2.0, 3.0]], "returned a list of length 2"),
        ([1.0, None, 2.0, 3.0], "returned a list of length 4"),
        (["1", "2", "3", "4"], "returned a list of length 4"),
        (np.zeros((4, 1)), r"returned a ndarray of float64 with shape \[4, 1\]"),
        (np.zeros(4, dtype=complex), "returned a ndarray of complex128"),
        (1.0, "returned a float"),
        (torch.zeros(4, 1), r"returned a Tensor of torch.float32 with shape \[4, 1\]"),
        (torch.zeros(4, dtype=torch.float64), r"must return float32 on cpu; .*torch.float64.*\.to\(completions"),
        (torch.zeros(4, dtype=torch.bool), "torch.bool"),
        (torch.zeros(4, device="meta"), "with shape .4. on meta"),
    ],
)
def test_everything_else_is_refused_by_name(value, message):
    with pytest.raises(ComponentError, match=f"reward 'mine'.*{message}"):
        as_values(value, "mine", "outcome", (4,), CPU)


class Returns(Reward):
    level = "outcome"

    def __call__(self, completions, targets, context):
        if isinstance(self.config, BaseException):
            raise self.config
        return self.config


def judged(answer, asked=TARGETS):
    return Verifier({"mine": (Returns(config=answer), 1.0)}, context())(rollout(), asked)


def test_the_row_of_a_reward_that_is_not_finite_is_told():
    asked = requests(torch.tensor([[1], [2]]), torch.tensor([[-1, -1], [0, 1]]))
    message = (
        r"'mine' is inf for completion 1 of prompt 2 \(row 2\): shown 'i2', wanted 'i2', behind a history that ends"
    )
    with pytest.raises(
        ComponentError, match=message + r" with 'i1'\. It is so in 1 more rows\. Rewards must be finite"
    ):
        judged(torch.tensor([0.0, 0.0, float("inf"), float("nan")]), asked)
    with pytest.raises(
        ComponentError, match=r"is nan for completion 2 of prompt 2 .*shown no item, .*behind no history"
    ):
        judged([0.0, 0.0, 0.0, float("nan")])
    with pytest.raises(ComponentError, match="is inf for completion 1"):
        judged([1e300, 0, 0, 0])  # more than float32 holds


def test_a_reward_that_raises_or_leaves_is_named():
    with pytest.raises(ComponentError, match=r"reward 'mine' raised KeyError: 'brand' .*test_answers.py, line"):
        judged(KeyError("brand"))
    with pytest.raises(ComponentError, match=r"reward 'mine' called sys.exit\(0\)"):
        judged(SystemExit(0))
    assert_same(judged([0, 1, 0, 1]).outcome, torch.tensor([0.0, 1.0, 0.0, 1.0]))
