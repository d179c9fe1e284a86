import math

import torch

from genrl.recommenders.scoring import best_items
from tests.helpers import assert_same


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_best_items_are_those_of_a_sort_without_what_is_denied():
    scores = numbers(4, 9)
    ranking = best_items(scores, 11, torch.tensor([[-1, 2, -1], [0, 3, 0], [-1, -1, -1], [8, 7, 6]]))
    for row, denied in enumerate([{2}, {0, 3}, set(), {6, 7, 8}]):
        expected = sorted(set(range(9)) - denied, key=lambda item: -scores[row, item].item())
        none = 11 - len(expected)
        assert ranking.items[row].tolist() == expected + [-1] * none
        assert_same(ranking.scores[row, : len(expected)], scores[row, expected])
        assert ranking.scores[row, len(expected) :].tolist() == [-math.inf] * none
    assert torch.equal(scores, numbers(4, 9))  # the scores themselves are left alone
    assert torch.equal(best_items(scores, 5).items, scores.argsort(dim=1, descending=True)[:, :5])
