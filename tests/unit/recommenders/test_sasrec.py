from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from genrl.errors import ConfigError
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders.base import BASELINES
from genrl.recommenders.sasrec import SASRec, SASRecConfig, draw_negatives
from tests.helpers import assert_same
from tests.unit.recommenders.problems import problem_of, rows_of, shaken, train

ITEMS = 12
PROBLEM = problem_of([[0, 3, 3, 5], [5, 3, 11]], size=ITEMS)


def model_of(**options: Any) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(hidden=8, max_length=5, **options), problem=PROBLEM)
    shaken(model)
    return model


def scores_after(model: SASRec, history: list[int]) -> torch.Tensor:
    """Scores by item number, from a single row without padding."""
    return model.encoder(torch.tensor([history]))[0][0, -1] @ model.encoder.table.T


def test_ranks_are_those_of_a_sort_of_all_scores() -> None:
    model = model_of()
    histories = torch.tensor([[-1, -1, 4], [1, 2, 3], [-1, 0, 0]])
    ranking = model.best(histories, 7)
    for row, history in enumerate([[4], [1, 2, 3], [0, 0]]):
        scores = scores_after(model, history)
        expected = sorted(range(ITEMS), key=lambda item: -scores[item].item())[:7]
        assert ranking.items[row].tolist() == expected
        assert_same(ranking.scores[row], scores[expected])


def test_only_the_latest_items_are_read_whatever_the_padding() -> None:
    model = model_of()
    long = model.best(torch.tensor([[-1, 9, 8, 1, 2, 3, 4, 5]]), ITEMS)
    short = model.best(torch.tensor([[1, 2, 3, 4, 5]]), ITEMS)
    assert torch.equal(long.items, short.items)
    assert_same(long.scores, short.scores)


def test_denied_items_are_left_out_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    histories = torch.randint(0, ITEMS, (9, 4), generator=torch.Generator().manual_seed(1))
    whole = model.best(histories, ITEMS, deny=histories)
    monkeypatch.setattr("genrl.recommenders.sasrec.CHUNK", 2)
    parts = model.best(histories, ITEMS, deny=histories)
    assert torch.equal(whole.items, parts.items)
    assert_same(whole.scores, parts.scores)
    for row in range(9):
        left = [item for item in whole.items[row].tolist() if item >= 0]
        assert sorted(left) == sorted(set(range(ITEMS)) - set(histories[row].tolist()))


@pytest.mark.parametrize("width", [0, 3])
def test_without_a_history_the_most_popular_items_come_first(width: int) -> None:
    nothing = torch.full((2, width), -1)
    ranking = model_of().best(nothing, 4)
    assert ranking.items[:, 0].tolist() == [3, 3]
    assert ranking.items[:, 1].tolist() == [5, 5]
    assert ranking.scores[0].tolist() == [3.0, 2.0, 1.0, 1.0]
    assert 3 not in model_of().best(nothing, 4, deny=torch.tensor([[3], [3]])).items


def test_cross_entropy_is_that_of_a_loop_over_targets() -> None:
    model = model_of()
    rows = [[1, 2, 3], [4, 4], [7, 0, 1, 11, 2]]
    total = 0.0
    for row in rows:
        for place in range(1, len(row)):
            history = row[:place]
            # Positions count from the end of the row's inputs, so that later places shift earlier ones.
            states = model.encoder(torch.tensor([row[:-1]]))[0][0, len(history) - 1]
            total -= (states @ model.encoder.table.T).log_softmax(dim=0)[row[place]].item()
    assert_same(model.loss(rows_of(*rows)), total, tolerance=1e-4)


def test_only_marked_places_are_targets() -> None:
    model = model_of()
    last = rows_of([1, 2, 3], [4, 0], per="target")
    states = torch.stack([model.encoder(torch.tensor([row]))[0][0, -1] for row in ([1, 2], [4])])
    expected = torch.nn.functional.cross_entropy(states @ model.encoder.table.T, torch.tensor([3, 0]), reduction="sum")
    assert_same(model.loss(last), expected.detach())


def test_binary_loss_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(loss="binary", negatives=2)
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


def test_negatives_are_drawn_evenly_from_the_items_outside_the_row() -> None:
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


def test_a_row_of_all_items_has_a_negative_that_exists() -> None:
    assert draw_negatives(torch.tensor([[0, 1, 2]]), torch.tensor([0]), 2, size=3).tolist() == [[2, 2]]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_a_rule_is_learnt(loss: str) -> None:
    problem = problem_of([[item, (item + 1) % 7] for item in range(7)])
    torch.manual_seed(0)
    config = SASRecConfig(hidden=16, max_length=4, dropout=0.0, loss=loss, negatives=4)  # type: ignore[arg-type]
    model = SASRec(config, problem=problem)
    assert train(model, problem, steps=80) < 0.1
    histories = torch.tensor([[-1, item] for item in range(7)])
    ranking = model.best(histories, 1, deny=histories)  # a row's own items are no negatives: nothing keeps them down
    assert ranking.items[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_the_gradient_reaches_every_parameter(loss: str) -> None:
    model = model_of(loss=loss, dropout=0.0).train()
    model.loss(rows_of([1, 2, 3, 4, 5, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not model.encoder.items.weight.grad[0].any()  # type: ignore[index]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_a_process_without_rows_has_no_loss_and_no_gradient(loss: str) -> None:
    model = model_of(loss=loss).train()
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    value = model.loss(SequenceBatch(nothing, nothing.bool(), torch.tensor(3.0)))
    value.backward()
    assert value.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is not None  # other processes wait for it
        assert not parameter.grad.any()
    assert len(model.best(nothing, 3).items) == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_mixed_precision_trains_and_ranks(loss: str) -> None:
    model = model_of(loss=loss, dropout=0.0)
    batch = rows_of([1, 2, 3], [4, 0])
    torch.manual_seed(0)
    whole = model.loss(batch).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        loss = model.loss(batch)
        items = model.best(torch.tensor([[-1, 4], [2, 3]]), 3).items
    loss.backward()
    assert 0 < abs(loss.item() - whole) < 0.1 * abs(whole)
    assert items.shape == (2, 3)


def test_a_saved_model_ranks_alike() -> None:
    model = model_of()
    other = SASRec(model.config, problem=PROBLEM).eval()
    other.load_state_dict(model.state_dict())
    histories = torch.tensor([[-1, 4], [2, 3], [-1, -1]])
    assert torch.equal(model.best(histories, 5).items, other.best(histories, 5).items)


def test_options_are_checked() -> None:
    built = BASELINES.build("sasrec", {"hidden": 8, "loss": "binary"}, problem=PROBLEM)
    assert isinstance(built, SASRec)
    for options, message in [
        ({"hidden": 9, "heads": 2}, "does not divide hidden=9"),
        ({"negatives": 0}, "at least 1"),
        ({"max_length": 0}, "at least 1 item"),
        ({"loss": "hinge"}, "cross_entropy"),
    ]:
        with pytest.raises(ConfigError, match=message):
            BASELINES.build("sasrec", options, problem=PROBLEM)


def test_mixed_precision_scores_the_catalogue_in_full_precision() -> None:
    model = shaken(model_of())
    with torch.autocast("cpu", torch.bfloat16):
        found = model.best(torch.tensor([[1, 2]]), 5).scores
    assert not torch.equal(found, found.bfloat16().float())
