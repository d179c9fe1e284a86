"""The interactions of all users, in order, with the part that each may play."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genrl.errors import DataError
from genrl.ops import expect

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


DAY = 86_400 * 10**9
"""Nanoseconds of a day."""


class Role(IntEnum):
    """What an interaction may be used for. Inside a user: HISTORY, then TRAIN, RL, VALID, TEST."""

    TRAIN = 0
    """Target of supervised training."""
    RL = 1
    """Target of an RL prompt; kept from supervised training and from SID embeddings."""
    VALID = 2
    """Target of a validation row."""
    TEST = 3
    """Target of a test row."""
    HISTORY = 4
    """Only shown, never a target."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """All interactions, sorted by user and then by time. Position n is one interaction; users lie between offsets.

    Example:
        >>> sequences = Sequences(
        ...     items=torch.tensor([5, 6, 7, 5]), roles=torch.tensor([0, 0, 3, 0], dtype=torch.uint8),
        ...     times=torch.tensor([0, 1, 1, 0]), offsets=torch.tensor([0, 3, 4]), user_ids=("ann", "bob"))
        >>> test = sequences.rows(Role.TEST)
        >>> sequences.histories(test, length=3).tolist()
        [[-1, 5, 6]]
    """

    items: Tensor
    """[N] int64 catalogue rows."""
    roles: Tensor
    """[N] uint8 values of `Role`."""
    times: Tensor
    """[N] int64 rank of the time; equal values of a user are ties."""
    offsets: Tensor
    """[U + 1] int64: user u holds the positions offsets[u] .. offsets[u + 1] - 1."""
    user_ids: tuple[str, ...]
    """External user ids."""
    feedback: dict[str, Tensor] = field(default_factory=dict)
    """Column of `data.columns.feedback` -> [N] float32 beside `items`; NaN where the file has no value."""
    moments: Tensor | None = None
    """[N] int64 first position of the moment that each interaction belongs to, which sees only what is before it; None:
    every interaction is a moment of its own."""
    clock: Tensor | None = None
    """[N] int64 nanoseconds from any beginning, never falling within a user; None: nobody says the unit of the times.
    It is no part of the fingerprint, which is about what happened and in what order."""

    def __post_init__(self) -> None:
        size = self.items.shape[0]
        expect(self.items, "Sequences.items", (None,), torch.int64)
        expect(self.roles, "Sequences.roles", (size,), torch.uint8)
        expect(self.times, "Sequences.times", (size,), torch.int64)
        expect(self.offsets, "Sequences.offsets", (len(self.user_ids) + 1,), torch.int64)
        if self.moments is not None:
            expect(self.moments, "Sequences.moments", (size,), torch.int64)
        if self.clock is not None:
            expect(self.clock, "Sequences.clock", (size,), torch.int64)
        for name, values in self.feedback.items():
            expect(values, f"Sequences.feedback[{name!r}]", (size,), torch.float32)

    def __len__(self) -> int:
        return self.items.shape[0]

    def rows(self, role: Role) -> Tensor:
        """Positions with that role, ascending: [P] int64."""
        return torch.nonzero(self.roles == int(role)).flatten()

    def users(self, positions: Tensor) -> Tensor:
        """User index of each position: [P] int64."""
        return torch.searchsorted(self.offsets, positions, right=True) - 1

    def past(self, positions: Tensor) -> Tensor:
        """Where the history of each position [P] ends: at itself, or at the first interaction of its moment."""
        return positions if self.moments is None else self.moments[positions]

    def seen(self, positions: Tensor) -> Tensor:
        """Interactions in the whole history of each position: [P] int64."""
        return self.past(positions) - self.offsets[self.users(positions)]

    def histories(self, positions: Tensor, length: int) -> Tensor:
        """The last `length` items before positions [P]: [P, length] int64, the latest last, -1 pads on the left."""
        places, inside = self._before(positions, length)
        return torch.where(inside, self.items[places.clamp(min=0)], -1)

    def ages(self, positions: Tensor, length: int) -> Tensor:
        """Days from each item of `histories` to the latest of its row: [P, length] float64, 0 where there is none.

        Raises:
            DataError: if there is no clock.
        """
        places, inside = self._before(positions, length)
        ticks = self.ticks()[places.clamp(min=0)]
        return torch.where(inside, ticks[:, -1:] - ticks, 0).double() / DAY

    def _before(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The last `length` places before positions [P], and which of them are of the same user: [P, length] each."""
        places = self.past(positions)[:, None] - torch.arange(length, 0, -1)
        return places, places >= self.offsets[self.users(positions)][:, None]

    def ticks(self) -> Tensor:
        """The clock.

        Raises:
            DataError: if there is none.
        """
        if self.clock is None:
            raise DataError(
                "days are asked for (prompt.window_days, activate.label_days), and nothing says in which unit the "
                "data keeps its times. Say it: data.time_unit=s for seconds, date for dates ...; where there are no "
                "times, leave these options out."
            )
        return self.clock

    @cached_property
    def tied(self) -> Tensor:
        """[N] bool: the interaction before it is the same user's and has the same time."""
        tied = torch.zeros(len(self), dtype=torch.bool)
        tied[1:] = self.times[1:] == self.times[:-1]
        tied[self.offsets[:-1][self.offsets.diff() > 0]] = False
        return tied

    @property
    def clock_hash(self) -> str:
        """16 hex digits that change with the clock; a DataError if there is none."""
        return hashlib.sha256(self.ticks().contiguous().numpy().tobytes()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any interaction, role, time, user, feedback or moment."""
        digest = hashlib.sha256("\x1e".join((*self.user_ids, *self.feedback)).encode("utf-8", "surrogatepass"))
        moments = () if self.moments is None else (self.moments,)
        for tensor in (self.items, self.roles, self.times, self.offsets, *self.feedback.values(), *moments):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def cooccurrence(sequences: Sequences, items: int, window: int) -> csr_matrix:
    """Count how often two items stand at most `window` places apart in a user's training part, in either order."""
    from scipy.sparse import coo_matrix

    rows, columns = [], []
    users = sequences.users(torch.arange(len(sequences)))
    trained = sequences.roles == int(Role.TRAIN)
    for distance in range(1, window + 1):
        # HISTORY and TRAIN rows come first in a user, so a later TRAIN row means that both are in the training part.
        pairs = torch.nonzero((users[distance:] == users[:-distance]) & trained[distance:]).flatten()
        rows.append(sequences.items[pairs])
        columns.append(sequences.items[pairs + distance])
    first, second = torch.cat(rows).numpy(), torch.cat(columns).numpy()
    different = first != second
    first, second = first[different], second[different]
    counts = coo_matrix((np.ones(len(first)), (first, second)), shape=(items, items)).tocsr()
    return (counts + counts.T).tocsr()
