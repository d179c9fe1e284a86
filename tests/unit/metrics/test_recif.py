import math

import pytest
import torch

from genrl.errors import DataError
from genrl.metrics.recif import any_hit, auc, first_hit, gold_found
from tests.helpers import assert_same

# a hit behind a repeated and an empty prediction; two hits; a miss; nothing predicted; no gold
PREDICTED = torch.tensor([[5, 5, -1, 8], [1, 2, 3, 4], [6, 6, 6, 6], [-1, -1, -1, -1], [5, 6, 7, 8]])
GOLD = torch.tensor([[8, 2, 8], [9, 4, 1], [7, 8, 9], [5, 6, 7], [-1, -1, -1]])


@pytest.mark.parametrize(
    ("k", "hit", "first", "found"),
    [
        (1, [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1 / 3, 0, 0, 0]),
        (3, [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1 / 3, 0, 0, 0]),
        (4, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1 / 2, 2 / 3, 0, 0, 0]),
        (32, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1 / 2, 2 / 3, 0, 0, 0]),
    ],
)
def test_repeated_and_empty_predictions_use_up_places_and_recall_divides_by_all_gold(k, hit, first, found):
    assert_same(any_hit(PREDICTED, GOLD, k), torch.tensor(hit, dtype=torch.float64))
    assert_same(first_hit(PREDICTED, GOLD, k), torch.tensor(first, dtype=torch.float64))
    assert_same(gold_found(PREDICTED, GOLD, k), torch.tensor(found, dtype=torch.float64))


def test_padding_and_the_order_of_gold_and_rows_change_nothing():
    wide = torch.nn.functional.pad(PREDICTED, (0, 3), value=-1), torch.nn.functional.pad(GOLD, (0, 2), value=-1)
    order = torch.tensor([3, 0, 4, 2, 1])
    for measure in (any_hit, gold_found):
        assert_same(measure(*wide, 4), measure(PREDICTED, GOLD, 4))
        assert_same(measure(PREDICTED[order], GOLD[order].flip(1), 4), measure(PREDICTED, GOLD, 4)[order])
    empty = torch.empty(5, 0, dtype=torch.int64)
    assert any_hit(empty, GOLD, 1).sum() == gold_found(empty, GOLD, 1).sum() == 0
    with pytest.raises(ValueError, match="at least 1"):
        any_hit(PREDICTED, GOLD, 0)


def test_auc_gives_ties_the_mean_rank_whatever_the_order_of_rows():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 7, (200,), generator=generator).double() / 7
    labels = torch.randint(0, 2, (200,), generator=generator)
    above = scores[labels == 1][:, None] - scores[labels == 0]  # every pair of a positive and a negative row
    wanted = ((above > 0).double() + (above == 0).double() / 2).mean()
    order = torch.randperm(200, generator=generator)
    assert_same(auc(scores, labels), wanted)
    assert_same(auc(scores[order], labels[order]), wanted)
    assert_same(auc(torch.full((4,), 0.3), torch.tensor([1, 0, 1, 0])), torch.tensor(0.5, dtype=torch.float64))


def test_auc_of_one_label_is_no_number_and_a_score_must_be_one():
    assert math.isnan(auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])))
    with pytest.raises(DataError, match="row 1 has a score that is not a number"):
        auc(torch.tensor([0.1, math.nan]), torch.tensor([1, 0]))
