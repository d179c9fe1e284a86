"""Interactions of a user at the same time: which they are, in what order they stand, and what that order gives away."""

from collections.abc import Mapping, Sequence

import numpy as np

from genrl.catalog.interactions import sorted_ids

Array = np.ndarray

SORTED = 0.95
"""Share of neighbours in the order of a column from which on the order counts as made by it."""
ENOUGH = 20
"""Neighbours with different values that a column must have to be judged."""


def moments(*columns: Array) -> Array:
    """Number the runs of neighbouring rows that agree in all columns [N] (user, time ...), from 0: [N] int64.

    Example:
        >>> moments(np.array([0, 0, 0, 1]), np.array([5, 5, 7, 7])).tolist()
        [0, 0, 1, 2]
    """
    new = np.zeros(len(columns[0]), dtype=bool)
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new.cumsum()


def shuffled(runs: Array, canonical: Array, seed: int) -> Array:
    """Put the rows of each run [N] into a random order: [N] int64, which row comes at each place.

    The order depends on the seed and on the values of `canonical` [N] (catalogue rows), not on the order of the rows
    inside a run. Without a run of two it is 0 .. N - 1.
    """
    order = np.lexsort((canonical, runs))
    keys = np.random.default_rng(seed).random(len(runs))
    return order[np.lexsort((keys, runs))]


def sorting(tied: Array, columns: Mapping[str, Array]) -> tuple[str, float] | None:
    """Find the column that the tied rows are sorted by, if there is one, and the share of neighbours in its order.

    Args:
        tied: bool [N], rows that are tied with the row before them.
        columns: name -> float [N], values that sort as the column does; NaN where there is none.

    Example:
        >>> sorting(np.arange(40) > 0, {"id": np.arange(40.0), "rating": np.arange(40) % 7.0})
        ('id', 1.0)
    """
    places = np.flatnonzero(tied)
    best: tuple[str, float] | None = None
    for name, values in columns.items():
        steps = values[places] - values[places - 1]
        steps = steps[np.isfinite(steps) & (steps != 0)]
        if len(steps) < ENOUGH:
            continue
        rising = float((steps > 0).mean())
        share = max(rising, 1 - rising)
        if share >= max(SORTED, best[1] + 1e-9 if best else 0):
            best = name, share
    return best


def ranked(words: Sequence[str | None]) -> Array:
    """Numbers that sort as words do, whole numbers among themselves as numbers: float [I], NaN for none.

    Example:
        >>> ranked(["10", "9", None]).tolist()
        [1.0, 0.0, nan]
    """
    known = {word: number for number, word in enumerate(sorted_ids(list({word for word in words if word})))}
    return np.array([known.get(word, np.nan) if word else np.nan for word in words], dtype=np.float64)


def in_words(tied: Array, order: str, column: tuple[str, float] | None, seed: int) -> str:
    """What a run is told of the ties [N] of its data, "" where there are none.

    `order` is that of `data.ties`, `column` what they are sorted by.
    """
    if not tied.any():
        return ""
    found = f"ties: {tied.mean():.0%} of the interactions have the time of the one before them"
    if order == "random":
        return f"{found}; their order is random (data.ties_seed={seed}; data.ties=file keeps that of the files)."
    if order == "together":
        return f"{found}; none is in the history of another of the same time (data.ties=together)."
    if column is None:
        return f"{found}; they stand in the order of the files (data.ties=file)."
    name, share = column
    return (
        f"{found}. They stand in the order of {name} in {share:.0%} of the cases: an artefact that a model of "
        f"sequences can learn. data.ties=random takes it away."
    )
