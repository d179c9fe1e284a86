"""Expected gradients of groups that are sampled, drawn without replacement, or a beam, all written out."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from genrl.batches import Rewards, Scores
from genrl.objectives import OBJECTIVES
from tests.helpers import assert_same
from tests.property.rollouts import single_tokens

ITEMS, SIZE = 5, 3


def expected_gradient(logits: Tensor, wanted: Tensor, groups: Sequence[Sequence[int]], chances: Tensor) -> Tensor:
    """Of minus the loss by the logits, over all groups [n, SIZE] with their chances [n] and all targets [ITEMS]."""
    rows = torch.tensor(groups).repeat(ITEMS, 1).flatten()[:, None]
    targets = torch.arange(ITEMS).repeat_interleave(len(groups) * SIZE)
    logits = logits.clone().requires_grad_()
    logps = logits.log_softmax(0)[rows]
    drawn = single_tokens(rows, logps.detach(), SIZE)
    objective = OBJECTIVES.build("dr_grpo", {"length": 1})
    hit = (rows[:, 0] == targets).double()
    experience = objective.prepare(drawn, Rewards({"hit": hit}, {"hit": 1.0}))
    often = (wanted[:, None] * chances).flatten().repeat_interleave(SIZE)[:, None]
    values = objective.surrogate(Scores(logps), experience)[0]
    return torch.autograd.grad((often * values).sum() / SIZE, logits)[0]


def without_replacement(chance: Tensor, items: Sequence[int]) -> float:
    """Chance to draw these items one after the other."""
    left, product = 1.0, 1.0
    for item in items:
        product *= float(chance[item]) / left
        left -= float(chance[item])
    return product


@pytest.mark.parametrize(
    ("seed", "gumbel", "beam"),
    [(0, 0.9470, 0.8785), (1, 0.9998, 0.9850), (2, 0.9915, 0.5011)],
)
def test_only_samples_have_the_gradient_of_the_expected_reward(seed, gumbel, beam):
    """The figures of docs/objectives.md: cosines with the gradient of the expected reward."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(ITEMS, generator=draw, dtype=torch.float64)
    wanted = torch.rand(ITEMS, generator=draw, dtype=torch.float64)
    wanted, chance = wanted / wanted.sum(), logits.softmax(0)
    exact = wanted * chance - chance * (wanted * chance).sum()
    product = list(itertools.product(range(ITEMS), repeat=SIZE))
    found = expected_gradient(logits, wanted, product, chance[torch.tensor(product)].prod(1))
    assert_same(found, exact * (SIZE - 1) / SIZE)  # the baseline of the group holds the completion itself
    orders = list(itertools.permutations(range(ITEMS), SIZE))
    chances = torch.tensor([without_replacement(chance, items) for items in orders], dtype=torch.float64)
    likeliest = [chance.topk(SIZE).indices.tolist()]
    drawn = expected_gradient(logits, wanted, orders, chances)
    searched = expected_gradient(logits, wanted, likeliest, torch.ones(1, dtype=torch.float64))
    cosines = [torch.cosine_similarity(exact, each, dim=0) for each in (drawn, searched)]
    assert_same(torch.stack(cosines), [gumbel, beam], 1e-4)
