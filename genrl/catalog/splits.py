"""k-core filtering and the division of interactions into training, RL, validation and test.

Where interactions of equal time stand together, a row of these functions is a moment.
"""

import numpy as np

from genrl.catalog.sequences import Role

Array = np.ndarray


def k_core(users: Array, items: Array, minimum: int) -> Array:
    """Drop users and items [N] with fewer than `minimum` interactions, again and again: [N] bool, what stays.

    Example:
        >>> k_core(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), 2).tolist()
        [True, True, True, True, False]
    """
    keep = np.ones(len(users), dtype=bool)
    while keep.any():
        few_users = np.bincount(users[keep], minlength=users.max() + 1) < minimum
        few_items = np.bincount(items[keep], minlength=items.max() + 1) < minimum
        drop = keep & (few_users[users] | few_items[items])
        if not drop.any():
            break
        keep &= ~drop
    return keep


def leave_one_out(offsets: Array, history_only: Array) -> Array:
    """Last interaction of each user to TEST, the one before to VALID, the rest to TRAIN.

    Users with fewer than three interactions stay in TRAIN: they cannot give one to each part. Users lie between
    `offsets` [U + 1]; rows of `history_only` [N] may only be shown. Returns [N] uint8 values of `Role`.
    """
    lengths = np.diff(offsets)
    from_end = np.repeat(offsets[1:], lengths) - 1 - np.arange(offsets[-1])
    targets = np.add.reduceat(~history_only, offsets[:-1], dtype=np.int64)
    enough = np.repeat(targets >= 3, lengths)
    roles = np.full(offsets[-1], Role.TRAIN, dtype=np.uint8)
    roles[enough & (from_end == 1)] = Role.VALID
    roles[enough & (from_end == 0)] = Role.TEST
    roles[history_only] = Role.HISTORY
    return roles


def temporal(times: Array, history_only: Array, valid_fraction: float, test_fraction: float) -> Array:
    """Everything from one point in time on to TEST, from an earlier one on to VALID, the rest to TRAIN.

    The points lie between distinct times, where the shares come closest to those asked for: no interaction of an
    earlier part is later than, or at the same time as, one of a later part. Times [N] int64 are comparable across
    users, rows of `history_only` [N] may only be shown. Returns [N] uint8 values of `Role`.

    Example:
        >>> temporal(np.arange(10), np.zeros(10, dtype=bool), 0.2, 0.1).tolist()
        [0, 0, 0, 0, 0, 0, 0, 2, 2, 3]
    """
    roles = np.full(len(times), Role.TRAIN, dtype=np.uint8)
    roles[times >= _point(times, valid_fraction + test_fraction)] = Role.VALID
    roles[times >= _point(times, test_fraction)] = Role.TEST
    roles[history_only] = Role.HISTORY
    return roles


def _point(times: Array, share: float) -> int:
    """Earliest time of the later part, chosen among the distinct times so that its share is closest to `share`."""
    distinct, counts = np.unique(times, return_counts=True)
    behind = counts[::-1].cumsum()[::-1]  # interactions at or after each distinct time
    return int(distinct[np.abs(behind - share * len(times)).argmin()])


def hide_first_targets(roles: Array, offsets: Array) -> Array:
    """Turn a user's very first interaction into HISTORY where it would be a validation or test row.

    Nothing lies before it, so there is no history to predict it from.
    """
    roles = roles.copy()
    first = offsets[:-1]
    evaluated = (roles[first] == Role.VALID) | (roles[first] == Role.TEST)
    roles[first[evaluated]] = Role.HISTORY
    return roles


def hold_out_for_rl(roles: Array, offsets: Array, count: int) -> Array:
    """Turn the last `count` TRAIN rows of each user, which lie together, into RL rows; one TRAIN row is left."""
    lengths = np.diff(offsets)
    train = roles == Role.TRAIN
    users = np.repeat(np.arange(len(lengths)), lengths)
    totals = np.bincount(users[train], minlength=len(lengths))
    before = np.concatenate([[0], np.cumsum(train)])
    rank = before[:-1] - before[offsets[:-1]][users]  # TRAIN rows of the same user before this one
    held = train & (rank >= totals[users] - count) & (rank >= 1)
    return np.where(held, np.uint8(Role.RL), roles)


def first_disorder(roles: Array, offsets: Array) -> int | None:
    """Position of the first row that comes after a row of a later part of the same user, or None.

    The order is history only, train, valid, test.
    """
    stage = np.where(roles == Role.HISTORY, -1, roles.astype(np.int64))
    lower = np.flatnonzero(np.diff(stage) < 0) + 1
    lower = lower[~np.isin(lower, offsets)]
    return int(lower[0]) if len(lower) else None
