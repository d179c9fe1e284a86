from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from genrl.catalog import Dataset, Role
from genrl.errors import DataError
from genrl.prompts.packing import SequenceBatch, SequenceBatches
from tests.unit.recommenders.problems import dataset_of

Row = tuple[tuple[int, ...], tuple[bool, ...]]


def users_of() -> Dataset:
    """Users of 1-30 interactions, each item unlike all others, with every order of roles that a split makes."""
    draw = random.Random(0)
    users, roles, number = [], [], 0
    for _ in range(40):
        held = draw.choice(["", "v", "ve", "vvee", "e"])
        known = "t" * draw.randint(0, 25) + draw.choice(["", "r"])
        letters = "h" * draw.randint(0, 4) + known + held or "t"
        users.append(list(range(number, number + len(letters))))
        roles.append(letters)
        number += len(letters)
    return dataset_of(users, roles)


def targets_of(dataset: Dataset) -> list[int]:
    """Items (numbered by position) that must be predicted: known, and not the first of their user."""
    roles, starts = dataset.sequences.roles, set(dataset.sequences.offsets.tolist())
    return [item for item in range(len(roles)) if roles[item] in (Role.TRAIN, Role.RL) and item not in starts]


def rows_of(batch: SequenceBatch) -> list[Row]:
    """Rows without padding, with their marks."""
    found = []
    for items, marks in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
        padding = items.count(-1)
        assert items[:padding] == [-1] * padding  # on the left only
        assert not any(marks[: padding + 1])  # neither padding nor the first item of a row is a target
        found.append((tuple(items[padding:]), tuple(marks[padding:])))
    return found


def one_pass(batches: SequenceBatches) -> list[Row]:
    return [row for step in range(batches.steps_per_epoch) for row in rows_of(batches.step(step))]


@pytest.mark.parametrize("length", [2, 3, 7, 50])
def test_every_known_target_counts_once_per_pass_behind_as_much_of_its_user_as_fits(length: int) -> None:
    dataset = users_of()
    starts = dataset.sequences.offsets[dataset.sequences.users(torch.arange(len(dataset.sequences)))].tolist()
    for per in ("target", "user"):
        rows = one_pass(SequenceBatches(dataset, per, length, batch=20))  # type: ignore[arg-type]
        marked = [item for items, marks in rows for item, mark in zip(items, marks, strict=True) if mark]
        assert Counter(marked) == Counter(targets_of(dataset))
        for items, marks in rows:
            last = items[-1]  # items are numbered by position
            assert marks[-1]
            assert items == tuple(range(max(starts[last], last - length + 1), last + 1))
            if per == "target":
                assert sum(marks) == 1


def test_a_target_behind_the_first_window_has_half_a_window_before_it() -> None:
    dataset = dataset_of([list(range(23))])
    rows = one_pass(SequenceBatches(dataset, "user", 8, batch=1))
    assert sorted(items for items, _ in rows) == [tuple(range(end - 8, end)) for end in (8, 12, 16, 20)] + [
        tuple(range(15, 23))
    ]
    contexts = [place for items, marks in rows if items[0] for place, mark in enumerate(marks) if mark]
    assert min(contexts) == 4


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(DataError, match="every interaction is held out"):
        SequenceBatches(dataset_of([[0, 1]], ["tv"]), "user", 6, batch=5)
    with pytest.raises(DataError, match="length=1"):
        SequenceBatches(dataset_of([[0, 1]]), "user", 1, batch=5)
