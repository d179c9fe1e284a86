"""Gold slates: what a user chose next, filled up to the length of a slate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.catalog.sequences import DAY, Role
from genrl.errors import DataError
from genrl.metrics.functional import distinct, seen
from genrl.recommenders.base import Problem, denied
from genrl.recommenders.reference import ItemKNN

CHUNK = 512
"""Slates that are filled at once; bounds memory, not results."""


@dataclass(frozen=True)
class GoldSlates:
    """Makes slates to imitate of labels, the items that a user really chose.

    Labels stand first, in their order and each once. The places behind them have the best of `ItemKNN` behind a history
    whose latest item is the first label, then the second, and so on to the user's own items, latest first: neighbours
    by co-occurrence, and where these end the most popular items. What fills is neither a label nor in the history (nor
    unwanted, where behaviour is weighted), unless all other items stand in the slate already. Only what stage `align`
    trains on is counted, so the items that are held out for `rl` have no say in what the supervised stages learn.
    """

    knn: ItemKNN
    length: int
    """Items of a slate (L)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Feedback column -> what one unit of it is worth; without any, every interaction is worth the same."""
    days: float | None = None
    """Labels come at most so long after the first one that is asked for; None: however late."""

    @classmethod
    def of(
        cls, problem: Problem, length: int, weights: Mapping[str, float] | None = None, days: float | None = None
    ) -> GoldSlates:
        """Count the training part of a data set, for slates of so many items, with weights of its feedback columns."""
        dataset = problem.dataset
        knn = ItemKNN(dataset.sequences, len(dataset.catalog), known=(Role.TRAIN,))
        knn.problem = problem
        return cls(knn, length, weights or {}, days)

    @cached_property
    def worth(self) -> Tensor:
        """[N] float64: the weighted sum of the feedback of each interaction, in which a missing value counts 0."""
        feedback = self.knn.problem.dataset.sequences.feedback
        parts = [weight * feedback[column].double().nan_to_num(nan=0.0) for column, weight in self.weights.items()]
        return torch.stack(parts).sum(0)

    def labels(self, positions: Tensor) -> Tensor:
        """The training items of the same user from positions [P] on, as many as there are: [P, L], -1 pads.

        With weights only interactions of positive worth count, the next L of them, the worthiest first and those of
        equal worth in their order; a row may have none. With `days` what comes later is no label, and with both the
        labels are the L worthiest of all that comes until then.

        Raises:
            DataError: if `days` are asked for and the data set has no clock.
        """
        if self.weights:
            return self._worthiest(positions)
        sequences = self.knn.problem.dataset.sequences
        places = positions[:, None] + torch.arange(self.length)
        inside = places < sequences.offsets[sequences.users(positions) + 1][:, None]
        places = places.clamp(max=len(sequences) - 1)
        known = inside & (sequences.roles[places] == int(Role.TRAIN)) & self._soon(positions, places)
        known[:, 0] = True
        return sequences.items[places].masked_fill(~known.cummin(1).values, -1)

    def _soon(self, positions: Tensor, places: Tensor) -> Tensor:
        """Which places [P, n] come at most `days` after their positions [P]."""
        if self.days is None:
            return torch.ones_like(places, dtype=torch.bool)
        ticks = self.knn.problem.dataset.sequences.ticks()
        return (ticks[places] - ticks[positions][:, None]).double() / DAY <= self.days

    def _worthiest(self, positions: Tensor) -> Tensor:
        sequences = self.knn.problem.dataset.sequences
        counted = torch.nonzero((sequences.roles == int(Role.TRAIN)) & (self.worth > 0)).flatten()
        return torch.cat([self._worthiest_of(part, counted) for part in positions.split(CHUNK)])

    def _worthiest_of(self, positions: Tensor, counted: Tensor) -> Tensor:
        """The worthiest of the positions `counted` [C], ascending, behind each of `positions` [P]: [P, L]."""
        sequences = self.knn.problem.dataset.sequences
        starts = torch.searchsorted(counted, positions)
        ends = torch.searchsorted(counted, sequences.offsets[sequences.users(positions) + 1])
        most = 0 if self.days is None else max((ends - starts).tolist(), default=0)
        longest = max(self.length, most)
        numbers = starts[:, None] + torch.arange(longest)
        inside = numbers < ends[:, None]
        places = torch.nn.functional.pad(counted, (0, 1))[numbers.clamp(max=len(counted))]
        inside &= self._soon(positions, places)
        worth = self.worth[places].masked_fill(~inside, -torch.inf)
        order = worth.argsort(dim=1, descending=True, stable=True)[:, : self.length]
        return sequences.items[places].masked_fill(~inside, -1).gather(1, order)

    def unwanted(self, positions: Tensor) -> Tensor | None:
        """Training items from positions [P] on whose worth is not positive: [P, R], -1 pads; None without weights."""
        if not self.weights:
            return None
        sequences = self.knn.problem.dataset.sequences
        ends = sequences.offsets[sequences.users(positions) + 1]
        longest = int((ends - positions).max()) if len(positions) else 0
        places = positions[:, None] + torch.arange(longest)
        inside = places < ends[:, None]
        places = places.clamp(max=len(sequences) - 1)
        refused = inside & (sequences.roles[places] == int(Role.TRAIN)) & (self.worth[places] <= 0)
        return sequences.items[places].masked_fill(~refused, -1)

    def __call__(
        self, labels: Tensor, history: Tensor, pool: Tensor | None = None, unwanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Labels [P, M] and histories [P, H], latest last, -1 pads -> slates [P, L] and their number of labels [P].

        With a pool [P, C] of catalogue rows a slate holds nothing else, so labels outside of it are left out. What is
        `unwanted` [P, R] fills no place, as what the user has seen.

        Raises:
            DataError: naming the first row with fewer than L items to choose from.
        """
        device = labels.device
        pools = repeat(None) if pool is None else pool.cpu().split(CHUNK)
        refused = repeat(None) if unwanted is None else unwanted.cpu().split(CHUNK)
        each = zip(labels.cpu().split(CHUNK), history.cpu().split(CHUNK), pools, refused, strict=False)
        parts = [self._filled(*part) for part in each]
        slates, counts = (torch.cat(part) for part in zip(*parts, strict=True))
        short = (slates < 0).any(1)
        if bool(short.any()):
            row = int(short.byte().argmax())
            raise DataError(
                f"gold slate {row} has {int((slates[row] >= 0).sum())} items to choose from, and a slate holds "
                f"layout.length={self.length}. Lower layout.length, or make the pools larger."
            )
        return slates.to(device), counts.to(device)

    def _filled(
        self, labels: Tensor, history: Tensor, pool: Tensor | None, unwanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if pool is not None:
            labels = labels.masked_fill(~seen(labels, pool), -1)
        labels = distinct(labels)[:, : self.length]
        nothing = labels[:, :0]
        known = torch.cat([history, labels.flip(1)], dim=1)
        known = known.gather(1, (known >= 0).byte().argsort(dim=1, stable=True))  # no gaps: ages count items
        asked = Requests(nothing, nothing.bool(), known, pool=pool)
        first = known if unwanted is None else torch.cat([known, unwanted], dim=1)
        slates = labels
        for deny in (first, labels):  # what the user has seen or does not want comes last of all
            refused = denied(replace(asked, deny=deny), len(self.knn.problem.dataset.catalog))
            further = self.knn.best(asked.history, self.length, refused).items
            slates = distinct(torch.cat([slates, further], dim=1))[:, : self.length]
            if not bool((slates < 0).any()):
                break
        return slates, (labels >= 0).sum(1)
