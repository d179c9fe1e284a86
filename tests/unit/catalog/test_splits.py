import numpy as np
import pytest

from genrl.catalog import Role, splits
from tests.helpers import assert_same

T, R, V, E, H = (int(role) for role in (Role.TRAIN, Role.RL, Role.VALID, Role.TEST, Role.HISTORY))


def random_log(seed, users=30, items=25, size=400):
    generator = np.random.default_rng(seed)
    who = np.sort(generator.integers(users, size=size))
    _, who = np.unique(who, return_inverse=True)
    what = generator.zipf(1.5, size=size) % items
    return who, what


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("minimum", [1, 2, 5, 9])
def test_k_core_is_what_peeling_leaves(seed, minimum):
    who, what = random_log(seed)
    keep = splits.k_core(who, what, minimum)
    # The k-core is unique: peeling one offender at a time, in any order, ends at the same set.
    left = set(range(len(who)))
    changed = True
    while changed:
        changed = False
        for column in (what, who):
            counts = np.bincount(column[sorted(left)], minlength=column.max() + 1)
            drop = {row for row in left if counts[column[row]] < minimum}
            left -= drop
            changed |= bool(drop)
    assert left == set(np.flatnonzero(keep).tolist())


def test_leave_one_out_by_hand():
    offsets = np.array([0, 4, 6, 9])
    history = np.zeros(9, dtype=bool)
    history[6] = True
    roles = splits.leave_one_out(offsets, history)
    assert_same(roles.tolist(), [T, T, V, E, T, T, H, T, T])


def test_temporal_cuts_between_distinct_times():
    times = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 4])
    roles = splits.temporal(times, np.zeros(10, dtype=bool), 0.3, 0.1)
    assert_same(roles.tolist(), [T] * 6 + [V] * 3 + [E])


def test_temporal_leaks_nothing_and_meets_the_shares():
    times = np.random.default_rng(0).integers(300, size=3000)
    roles = splits.temporal(times, np.zeros(3000, dtype=bool), 0.15, 0.1)
    assert times[roles == T].max() < times[roles == V].min()
    assert times[roles == V].max() < times[roles == E].min()
    assert abs((roles == V).mean() - 0.15) < 0.01
    assert abs((roles == E).mean() - 0.1) < 0.01


def test_first_targets_are_hidden():
    roles = np.array([V, E, T, E, E, E], dtype=np.uint8)
    assert_same(splits.hide_first_targets(roles, np.array([0, 2, 4, 6])).tolist(), [H, E, T, E, H, E])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, [H, T, T, T, V, E, T, V, T, T]),
        (1, [H, T, T, R, V, E, T, V, T, R]),
        (2, [H, T, R, R, V, E, T, V, T, R]),
        (9, [H, T, R, R, V, E, T, V, T, R]),
    ],
)
def test_rl_rows_are_the_last_training_rows_and_leave_one(count, expected):
    roles = np.array([H, T, T, T, V, E, T, V, T, T], dtype=np.uint8)
    found = splits.hold_out_for_rl(roles, np.array([0, 6, 8, 10]), count)
    assert_same(found.tolist(), expected)
    assert found.dtype == np.uint8


def test_disorder_inside_a_user_is_found():
    offsets = np.array([0, 2, 4])
    assert splits.first_disorder(np.array([T, E, T, V], dtype=np.uint8), offsets) is None
    assert splits.first_disorder(np.array([H, E, V, T], dtype=np.uint8), offsets) == 3
    assert splits.first_disorder(np.array([T, H, T, V], dtype=np.uint8), offsets) == 1
