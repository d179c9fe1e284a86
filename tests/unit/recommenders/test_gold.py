from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.recommenders import gold
from genrl.recommenders.gold import GoldSlates
from tests.helpers import assert_same
from tests.unit.recommenders.problems import dataset_of

TOY = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=40, items=60)))
LENGTH = 6


@pytest.fixture(scope="module")
def slates() -> GoldSlates:
    problem: Any = SimpleNamespace(dataset=TOY, table=TOY.catalog)
    return GoldSlates.of(problem, LENGTH)


def slowly(slates: GoldSlates, labels: list[int], history: list[int]) -> list[int]:
    """One slate, written down from the documentation."""
    first = [item for place, item in enumerate(labels) if item >= 0 and item not in labels[:place]][:LENGTH]
    context = torch.tensor([[item for item in history if item >= 0] + first[::-1]])
    known = set(context[0].tolist())
    ranked = slates.knn.everything(context, len(TOY.catalog)).items[0].tolist()
    wanted = first + [item for item in ranked if item not in known]
    return (wanted + [item for item in ranked if item in known and item not in first])[:LENGTH]


def test_labels_are_the_training_items_of_the_same_user_from_a_position_on(slates):
    sequences = TOY.sequences
    positions = sequences.rows(Role.TRAIN)
    labels = slates.labels(positions).tolist()
    users = sequences.users(torch.arange(len(sequences))).tolist()
    for position, found in zip(positions.tolist(), labels, strict=True):
        wanted = []
        for place in range(position, min(position + LENGTH, len(sequences))):
            if users[place] != users[position] or sequences.roles[place] != int(Role.TRAIN):
                break
            wanted.append(int(sequences.items[place]))
        assert found == wanted + [-1] * (LENGTH - len(wanted))
    held_out = sequences.rows(Role.RL)
    assert slates.labels(held_out).tolist() == [[item] + [-1] * 5 for item in sequences.items[held_out].tolist()]


def test_slates_are_labels_and_then_what_item_knn_ranks_behind_them(slates, monkeypatch):
    positions = TOY.sequences.rows(Role.TRAIN)[::7].contiguous()
    labels, history = slates.labels(positions), TOY.sequences.histories(positions, 12)
    made, counts = slates(labels, history)
    assert made.tolist() == [slowly(slates, *pair) for pair in zip(labels.tolist(), history.tolist(), strict=True)]
    assert counts.tolist() == [len(set(row) - {-1}) for row in labels.tolist()]
    assert {1, LENGTH} <= set(counts.tolist())  # some are filled, and some need no filling
    for slate, row, past in zip(made.tolist(), labels.tolist(), history.tolist(), strict=True):
        assert len(set(slate)) == LENGTH
        assert not (set(slate) - set(row)) & set(past)
    monkeypatch.setattr(gold, "CHUNK", 3)
    again, _ = slates(labels, history)
    assert again.equal(made)


def test_repeated_labels_stand_once_and_what_was_seen_comes_last(slates):
    labels = torch.tensor([[7, 7, 3, 7, -1, -1]])
    everything = torch.arange(60)[torch.arange(60) != 11][None]
    made, counts = slates(labels, everything)
    assert counts.tolist() == [2]
    assert made[0, :3].tolist() == [7, 3, 11]  # the one item that is new
    assert made.tolist() == [slowly(slates, labels[0].tolist(), everything[0].tolist())]
    assert len(set(made[0].tolist())) == LENGTH


def test_items_that_are_held_out_have_no_say(slates):
    known = TOY.sequences.roles == int(Role.TRAIN)
    wanted = torch.bincount(TOY.sequences.items[known], minlength=60)
    assert slates.knn.unreached.argsort(descending=True).equal(wanted.argsort(descending=True, stable=True))


def test_slates_of_a_pool_hold_nothing_else(slates):
    labels, history = torch.tensor([[5, 9], [1, -1]]), torch.tensor([[-1, 2], [3, 4]])
    pool = torch.tensor([[9, 10, 11, 12, 13, 14, 2, -1], [1, 3, 4, 20, 21, 22, -1, -1]])
    made, counts = slates(labels, history, pool)
    assert counts.tolist() == [1, 1]  # 5 is not in the pool
    assert made[:, 0].tolist() == [9, 1]
    assert sorted(made[0].tolist()) == [9, 10, 11, 12, 13, 14]
    assert sorted(made[1].tolist()) == [1, 3, 4, 20, 21, 22]
    assert set(made[1, 1:4].tolist()) == {20, 21, 22}  # what was seen comes last
    with pytest.raises(DataError, match=r"gold slate 1 has 5 items to choose from, and a slate holds layout\.length=6"):
        slates(labels, history, pool.masked_fill(pool == 22, -1))


def test_nothing_is_made_of_nothing(slates, tmp_path: Path):
    none: Tensor = torch.empty(0, 1, dtype=torch.int64)
    made, counts = slates(none, none)
    assert (made.shape, counts.shape) == ((0, LENGTH), (0,))


def behaved(users: list[list[int]], roles: list[str], size: int, **feedback: list[float]) -> Any:
    """Gold slates of 3 items over users whose interactions have feedback, with weights click 1 and hate -2."""
    dataset = dataset_of(users, roles, size=size)
    columns = {name: torch.tensor(values) for name, values in feedback.items()}
    dataset = replace(dataset, sequences=replace(dataset.sequences, feedback=columns))
    problem: Any = SimpleNamespace(dataset=dataset, table=dataset.catalog)
    return GoldSlates.of(problem, 3, {"click": 1.0, "hate": -2.0})


def test_weighted_labels_are_the_next_items_of_positive_worth_the_worthiest_first():
    nan = float("nan")
    made = behaved(
        [[0, 1, 2, 3, 4, 5], [6, 7]],
        ["tttttr", "tt"],
        10,
        click=[1.0, 2.0, nan, 2.0, 5.0, 9.0, 1.0, 4.0],
        hate=[0.0, 0.0, 0.0, 0.0, nan, 0.0, 1.0, nan],
    )
    assert_same(made.worth, torch.tensor([1.0, 2.0, 0.0, 2.0, 5.0, 9.0, -1.0, 4.0]).double())
    positions = torch.tensor([0, 1, 2, 4, 6, 7])
    assert made.labels(positions).tolist() == [
        [1, 3, 0],  # of the next three that are worth something, and not 4 behind them; equal ones in their order
        [4, 1, 3],
        [4, 3, -1],  # not 5, which is held out for rl
        [4, -1, -1],
        [7, -1, -1],  # 6 is hated
        [7, -1, -1],
    ]
    assert made.unwanted(positions).tolist()[:3] == [[-1, -1, 2, -1, -1, -1], [-1, 2, -1, -1, -1, -1], [2] + [-1] * 5]
    assert made.unwanted(positions)[4].tolist() == [6] + [-1] * 5


def test_what_is_worth_nothing_fills_no_place():
    made = behaved(
        [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5]],
        ["tttt", "tttt", "tt"],
        6,
        click=[1.0, 0.0, 1.0, 0.0] * 2 + [1.0] * 2,
        hate=[0.0] * 10,
    )
    where = torch.tensor([0])
    history = torch.full((1, 1), -1)
    slates, counts = made(made.labels(where), history, None, made.unwanted(where))
    assert slates[0, :2].tolist() == [0, 2]
    assert int(slates[0, 2]) in (4, 5)  # although 1 and 3 are the neighbours
    assert counts.tolist() == [2]
    bare, _ = made(made.labels(where), history)
    assert int(bare[0, 2]) in (1, 3)
    short = torch.tensor([[0, 1, 2, 3]])
    assert set(made(made.labels(where), history, short, made.unwanted(where))[0][0].tolist()) > {0, 2}  # last of all


def test_nothing_of_worth_gives_no_labels():
    made = behaved([[0, 1]], ["tt"], 4, click=[0.0, 0.0], hate=[1.0, 0.0])
    assert made.labels(torch.tensor([0, 1])).tolist() == [[-1] * 3] * 2


def timed(
    days: float, hours: list[int], weights: dict[str, float] | None = None, **feedback: list[float]
) -> GoldSlates:
    """Gold slates of 3 items over one user, for whom hours have passed at each interaction; the last is for rl."""
    dataset = dataset_of([list(range(len(hours)))], ["t" * (len(hours) - 1) + "r"])
    columns = {name: torch.tensor(values) for name, values in feedback.items()}
    clock = torch.tensor(hours) * 3600 * 10**9
    dataset = replace(dataset, sequences=replace(dataset.sequences, feedback=columns, clock=clock))
    problem: Any = SimpleNamespace(dataset=dataset, table=dataset.catalog)
    return GoldSlates.of(problem, 3, weights, days)


def test_labels_end_so_many_days_after_the_first():
    made = timed(2, [0, 24, 48, 49, 200, 201, 202])
    positions = torch.tensor([0, 1, 2, 3, 4, 6])
    wanted = [[0, 1, 2], [1, 2, 3], [2, 3, -1], [3, -1, -1], [4, 5, -1], [6, -1, -1]]
    assert made.labels(positions).tolist() == wanted
    unclocked = behaved([[0, 1]], ["tt"], 2, click=[1.0, 1.0], hate=[0.0, 0.0])
    for weights in ({}, {"click": 1.0}):
        with pytest.raises(DataError, match="nothing says in which unit"):
            replace(unclocked, days=2, weights=weights).labels(torch.tensor([0]))


def test_weighted_labels_are_the_worthiest_of_the_window(monkeypatch):
    made = timed(2, [0, 1, 2, 3, 48, 49, 50], {"click": 1.0}, click=[1.0, 1.0, 0.0, 1.0, 5.0, 7.0, 9.0])
    positions = torch.tensor([0, 1, 4])
    assert made.labels(positions).tolist() == [[4, 0, 1], [5, 4, 1], [5, 4, -1]]  # 6 is held out for rl
    monkeypatch.setattr(gold, "CHUNK", 1)
    assert made.labels(positions).tolist() == [[4, 0, 1], [5, 4, 1], [5, 4, -1]]
    assert made.labels(positions[:0]).shape == (0, 3)
