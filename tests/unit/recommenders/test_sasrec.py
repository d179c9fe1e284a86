import math

import pytest
import torch

from genrl.recommenders.sasrec import SASRec, draw_negatives
from tests.helpers import assert_same
from tests.unit.recommenders.problems import ITEMS, model_of, rows_of


def scores_after(model: SASRec, history: list[int]) -> torch.Tensor:
    """Scores by item number, from a single row without padding."""
    return model.encoder(torch.tensor([history]))[0][0, -1] @ model.encoder.table.T


def test_ranks_are_those_of_a_sort_of_all_scores():
    model = model_of("sasrec")
    histories = torch.tensor([[-1, -1, 4], [1, 2, 3], [-1, 0, 0]])
    ranking = model.best(histories, 7)
    for row, history in enumerate([[4], [1, 2, 3], [0, 0]]):
        scores = scores_after(model, history)
        expected = sorted(range(ITEMS), key=lambda item: -scores[item].item())[:7]
        assert ranking.items[row].tolist() == expected
        assert_same(ranking.scores[row], scores[expected])


def test_only_the_latest_items_are_read_whatever_the_padding():
    model = model_of("sasrec")
    long = model.best(torch.tensor([[-1, 9, 8, 1, 2, 3, 4, 5]]), ITEMS)
    short = model.best(torch.tensor([[1, 2, 3, 4, 5]]), ITEMS)
    assert torch.equal(long.items, short.items)
    assert_same(long.scores, short.scores)


def test_denied_items_are_left_out_in_every_chunk(monkeypatch):
    model = model_of("sasrec")
    histories = torch.randint(0, ITEMS, (9, 4), generator=torch.Generator().manual_seed(1))
    whole = model.best(histories, ITEMS, deny=histories)
    monkeypatch.setattr("genrl.recommenders.sasrec.CHUNK", 2)
    parts = model.best(histories, ITEMS, deny=histories)
    assert torch.equal(whole.items, parts.items)
    assert_same(whole.scores, parts.scores)
    for row in range(9):
        left = [item for item in whole.items[row].tolist() if item >= 0]
        assert sorted(left) == sorted(set(range(ITEMS)) - set(histories[row].tolist()))


def test_cross_entropy_is_that_of_a_loop_over_targets():
    model = model_of("sasrec")
    rows = [[1, 2, 3], [4, 4], [7, 0, 1, 11, 2]]
    total = 0.0
    for row in rows:
        for place in range(1, len(row)):
            history = row[:place]
            # Positions count from the end of the row's inputs, so that later places shift earlier ones.
            states = model.encoder(torch.tensor([row[:-1]]))[0][0, len(history) - 1]
            total -= (states @ model.encoder.table.T).log_softmax(dim=0)[row[place]].item()
    assert_same(model.loss(rows_of(*rows)), total, tolerance=1e-4)


def test_only_marked_places_are_targets():
    model = model_of("sasrec")
    last = rows_of([1, 2, 3], [4, 0], per="target")
    states = torch.stack([model.encoder(torch.tensor([row]))[0][0, -1] for row in ([1, 2], [4])])
    expected = torch.nn.functional.cross_entropy(states @ model.encoder.table.T, torch.tensor([3, 0]), reduction="sum")
    assert_same(model.loss(last), expected.detach())


def test_binary_loss_is_its_definition(monkeypatch):
    model = model_of("sasrec", loss="binary", negatives=2)
    monkeypatch.setattr(
        "genrl.recommenders.sasrec.draw_negatives",
        lambda items, owners, count, size: owners[:, None] + torch.tensor([8, 9]),
    )
    total = 0.0
    for owner, (history, target) in enumerate([([1, 2], 3), ([4], 0)]):
        scores = scores_after(model, history)
        total -= math.log(torch.sigmoid(scores[target]).item())
        for negative in (owner + 8, owner + 9):
            total -= math.log(1 - torch.sigmoid(scores[negative]).item())
    assert_same(model.loss(rows_of([1, 2, 3], [4, 0], per="target")), total, tolerance=1e-4)


def test_negatives_are_drawn_evenly_from_the_items_outside_the_row():
    items = torch.tensor([[-1, 3, 0, 3], [5, 4, 0, 1], [-1, -1, -1, 2]])
    owners = torch.tensor([0, 1, 2, 0]).repeat_interleave(3000)
    torch.manual_seed(0)
    drawn = draw_negatives(items, owners, 4, size=6)
    assert drawn.shape == (12000, 4)
    for row, outside in enumerate([[1, 2, 4, 5], [2, 3], [0, 1, 3, 4, 5]]):
        values, counts = drawn[owners == row].unique(return_counts=True)
        assert values.tolist() == outside
        shares = counts.double() / counts.sum()
        deviation = math.sqrt(1 / len(outside) / int(counts.sum()))
        assert (shares - 1 / len(outside)).abs().max() < 5 * deviation


def test_a_row_of_all_items_has_a_negative_that_exists():
    assert draw_negatives(torch.tensor([[0, 1, 2]]), torch.tensor([0]), 2, size=3).tolist() == [[2, 2]]


@pytest.mark.parametrize("name", ["sasrec", "rearec"])
def test_probabilities_are_the_softmax_that_training_fits(name):
    model = model_of(name)
    histories = torch.tensor([[-1, -1, 4], [1, 2, 3], [-1, -1, -1]])
    ranking, found = model.best(histories, ITEMS), model.likelihoods(histories)
    order = ranking.items.argsort(1)
    wanted = (ranking.scores.gather(1, order) / getattr(model.config, "temperature", 1.0)).log_softmax(1)
    assert_same(found[:2], wanted[:2])
    counts = torch.bincount(torch.tensor([0, 3, 3, 5, 5, 3, 11]), minlength=ITEMS) + 1  # nothing is known of the user
    assert_same(found[2], (counts / counts.sum()).log())
