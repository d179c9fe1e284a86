"""Candidate pools: the few items that a request may get, in place of the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import cooccurrence
from genrl.config.schema import PoolConfig
from genrl.errors import DataError
from genrl.ops import seed_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WINDOW = 5
"""Largest distance of two items of a user that co-occur."""


@dataclass(frozen=True)
class Pool:
    """Candidates of P requests."""

    items: Tensor
    """[P, C] catalogue rows in random order, each once; -1 pads where the catalogue has too few."""
    reached: Tensor
    """[P, M] bool: targets that are in the pool."""
    targets: Tensor
    """[P, M] bool: targets that there are."""

    @property
    def ceiling(self) -> float:
        """Share of the targets that are in the pools: no recall inside them is higher. NaN without targets."""
        count = int(self.targets.sum())
        return float(self.reached.sum()) / count if count else float("nan")

    @property
    def lacking(self) -> int:
        """Requests with targets, none of which is in their pool."""
        return int((self.targets.any(1) & ~self.reached.any(1)).sum())


class Pools:
    """Makes the pool of any request: its targets, neighbours of its history, popular items and random ones.

    The pool of a request depends on its history, its targets, a number of its own and the options: not on the batch
    that it is in, the run's seed or the number of processes. Nothing but the TRAIN part is counted for neighbours, and
    the training part (TRAIN and RL) for popularity.

    Args:
        dataset: catalogue and sequences.
        config: sizes and seed; `size` is set.
        vectors: [I, d] embeddings of the items, for `by: embedding`.
    """

    def __init__(self, dataset: Dataset, config: PoolConfig, vectors: Tensor | None = None) -> None:
        self.dataset, self.config, self.vectors = dataset, config, vectors
        if config.by == "embedding" and vectors is None:
            raise ValueError("pools by embedding need vectors of the items")
        self.size = min(config.size or 0, len(dataset.catalog))
        self.popular = dataset.catalog.train_counts.argsort(descending=True, stable=True).numpy()

    @cached_property
    def counts(self) -> csr_matrix:
        """[I, I] how often items co-occur in the TRAIN part, over the square root of both totals (cosine)."""
        from scipy.sparse import diags

        counts = cooccurrence(self.dataset.sequences, len(self.dataset.catalog), WINDOW)
        root = np.sqrt(np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1))
        return (diags(1 / root) @ counts @ diags(1 / root)).tocsr()

    @cached_property
    def unit(self) -> Tensor:
        """[I, d] embeddings of length 1."""
        assert self.vectors is not None
        return torch.nn.functional.normalize(self.vectors, dim=1)

    def make(self, histories: Tensor, targets: Tensor, numbers: Tensor, users: Sequence[str] = ()) -> Pool:
        """Pools of requests.

        Args:
            histories: [P, H] catalogue rows, latest last, -1 pads.
            targets: [P, M], -1 pads.
            numbers: [P] one of its own for each request, e.g. the position of its target.
            users: ids of P users, for messages.

        Raises:
            DataError: if a pool is empty, because its user has seen every item.
        """
        rows = [
            self._pool(history[history >= 0], target[target >= 0], number)
            for history, target, number in zip(histories.numpy(), targets.numpy(), numbers.tolist(), strict=True)
        ]
        items = torch.full((len(rows), self.size), -1)
        for place, row in enumerate(rows):
            if not len(row):
                whose = f"user {users[place]!r}" if users else f"request {place}"
                raise DataError(
                    f"the candidate pool of {whose} is empty: all {len(self.popular):,} items are in the history. Set "
                    f"data.pool.seen=true, or take the user out of the interactions."
                )
            items[place, : len(row)] = torch.from_numpy(row)
        there = targets >= 0
        reached = (items[:, None] == targets[:, :, None]).any(2) & there
        return Pool(items, reached, there)

    def at(self, positions: Tensor) -> Pool:
        """Pools of the requests whose targets stand at `positions` [P]."""
        sequences = self.dataset.sequences
        longest = int(sequences.seen(positions).max()) if positions.numel() else 0
        histories = sequences.histories(positions, max(longest, 1))
        users = [sequences.user_ids[user] for user in sequences.users(positions).tolist()]
        return self.make(histories, sequences.items[positions][:, None], positions, users)

    def _pool(self, history: np.ndarray, targets: np.ndarray, number: int) -> np.ndarray:
        """Catalogue rows of one pool, in random order."""
        config, random = self.config, np.random.default_rng(seed_of(config_seed(self.config), number))
        free = np.ones(len(self.popular), bool)
        if not config.seen:
            free[history] = False
        chosen: list[np.ndarray] = []

        def take(ranked: np.ndarray, count: int) -> None:
            rows = ranked[free[ranked]][: min(count, self.size - sum(map(len, chosen)))]
            free[rows] = False
            chosen.append(rows)

        if config.target:
            take(np.array(list(dict.fromkeys(targets.tolist())), np.int64), len(targets))
        take(self._nearest(history[-config.latest :]), config.neighbours)
        take(self.popular[: config.popular + self.size + len(history)], config.popular)
        rest = np.flatnonzero(free)
        missing = min(self.size - sum(map(len, chosen)), len(rest))
        chosen.append(random.choice(rest, missing, replace=False))
        return random.permutation(np.concatenate(chosen))

    def _nearest(self, latest: np.ndarray) -> np.ndarray:
        """Items by falling nearness to the latest items of a history, ties by row; only those that are near at all."""
        if not len(latest):
            return latest
        if self.config.by == "cooccurrence":
            near = np.asarray(self.counts[latest].sum(axis=0)).ravel()
            return np.argsort(-near, kind="stable")[: int((near > 0).sum())]
        return (self.unit @ self.unit[torch.from_numpy(latest)].mean(0)).argsort(descending=True, stable=True).numpy()


def config_seed(config: PoolConfig) -> int:
    """Seed of all pools of a configuration: those of another size have other random items."""
    return seed_of(config.seed, config.size or 0)


def in_words(config: PoolConfig) -> str:
    """What candidate pools hold, for the head of a run.

    Example:
        >>> in_words(PoolConfig(size=100, target=False))
        'candidate pools of 100 items: 40 neighbours by cooccurrence, 20 popular, the rest random'
    """
    parts = ["the targets"] * config.target
    parts += [f"{config.neighbours} neighbours by {config.by}"] * bool(config.neighbours)
    parts += [f"{config.popular} popular"] * bool(config.popular)
    return f"candidate pools of {config.size:,} items: {', '.join([*parts, 'the rest random'])}"
