from dataclasses import replace

import pytest
import torch

from genrl.catalog import Role, Sequences
from genrl.errors import DataError
from tests.helpers import assert_same


def sequences(items=(5, 6, 7, 8, 5, 9), roles=(0, 1, 2, 3, 0, 4), offsets=(0, 4, 4, 6), users=("a", "empty", "b")):
    return Sequences(
        torch.tensor(items),
        torch.tensor(roles, dtype=torch.uint8),
        torch.arange(len(items)),
        torch.tensor(offsets),
        users,
    )


def test_rows_users_and_histories():
    data = sequences()
    assert_same(data.rows(Role.TRAIN), [0, 4])
    assert_same(data.rows(Role.TEST), [3])
    assert_same(data.users(torch.arange(6)), [0, 0, 0, 0, 2, 2])
    assert_same(data.histories(torch.tensor([0, 2, 3, 5]), 2), [[-1, -1], [5, 6], [6, 7], [-1, 5]])
    assert data.histories(torch.tensor([], dtype=torch.int64), 3).shape == (0, 3)
    with pytest.raises(ValueError, match=r"Sequences\.offsets"):
        sequences(users=("a", "b"))


@pytest.mark.parametrize("length", [1, 4, 50])
def test_histories_equal_a_loop(length):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 9, (12,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    total = int(sizes.sum())
    items = torch.randint(0, 100, (total,), generator=generator)
    data = sequences(items.tolist(), [0] * total, offsets.tolist(), tuple(map(str, range(12))))
    found = data.histories(torch.arange(total), length)
    for position in range(total):
        start = max(int(offsets[offsets <= position].max()), position - length)
        before = items[start:position].tolist()
        assert found[position].tolist() == [-1] * (length - len(before)) + before


@pytest.mark.parametrize(
    "change", [{"items": (5, 6, 7, 8, 5, 1)}, {"roles": (0, 0, 2, 3, 0, 4)}, {"users": ("a", "", "c")}]
)
def test_the_fingerprint_sees_items_roles_and_users(change):
    assert sequences().fingerprint == sequences().fingerprint != sequences(**change).fingerprint


def test_ages_are_days_to_the_latest_of_a_history_by_a_clock_in_nanoseconds():
    hours = torch.tensor([0, 24, 36, 36, 5, 700]) * 3600 * 10**9
    data = replace(sequences(), clock=hours)
    assert_same(data.ages(torch.tensor([3, 2, 5, 0]), 3), [[1.5, 0.5, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert data.fingerprint == sequences().fingerprint
    assert data.clock_hash != replace(data, clock=hours + torch.arange(6)).clock_hash
    with pytest.raises(DataError, match=r"nothing says in which unit .* data\.time_unit=s for seconds"):
        sequences().ages(torch.tensor([3]), 3)
