"""Supervised batches of plain item sequences, for models that do not read tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genrl.batches import Batch
from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.errors import DataError

KNOWN = (Role.TRAIN, Role.RL)
"""What baselines learn from: all that a policy has seen at its end."""


@dataclass(frozen=True, slots=True)
class SequenceBatch(Batch):
    """Rows of items, each as long as its user's history reaches back."""

    items: Tensor
    """[B, L] int64 catalogue rows, L of at least 2, right-aligned: the latest item is last, -1 pads on the left."""
    targets: Tensor
    """[B, L] bool: items to be predicted from those left of them; never the first item of a row."""
    share: Tensor
    """[] float: targets of the whole step over all ranks; divides the loss."""

    def __len__(self) -> int:
        """Rows."""
        return self.items.shape[0]


class SequenceBatches:
    """Plans and builds optimiser steps over item sequences; a step depends on (seed, step) alone.

    Args:
        dataset: sequences and roles.
        per: a row ends at every target and has it as its only target, or rows are windows of a user's targets. Windows
            behind the first repeat half a window as context, so that every target counts once per pass.
        length: items per row, at most; at least 2, an item and its target.
        batch: rows per step, over all ranks.
        seed: of the order.
        rank: this process.
        world: number of processes.
        known: roles of targets.

    Raises:
        DataError: if there is nothing to train on, or rows have no room for a target.
    """

    def __init__(
        self,
        dataset: Dataset,
        per: Literal["target", "user"],
        length: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        known: Collection[Role] = KNOWN,
    ) -> None:
        if length < 2:
            raise DataError(f"length={length}: a row needs an item and its target. Choose at least 2.")
        self.sequences = dataset.sequences
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world = rank, world
        roles = torch.tensor([int(role) for role in known], dtype=self.sequences.roles.dtype)
        self.known = torch.isin(self.sequences.roles, roles)
        first = torch.zeros_like(self.known)
        first[self.sequences.offsets[:-1][self.sequences.offsets.diff() > 0]] = True
        targets = torch.nonzero(self.known & ~first).flatten()
        if not len(targets):
            raise DataError("no training positions: every interaction is held out. Check data.split.")
        self.rows = self._single(targets) if per == "target" else self._windows(targets)
        self.steps_per_epoch = -(-len(self.rows) // batch)
        self._latest: tuple[int, Tensor] | None = None

    def step(self, index: int) -> SequenceBatch:
        """The batch of an optimiser step, this rank's rows of it."""
        epoch, within = divmod(index, self.steps_per_epoch)
        rows = self.rows[self._order(epoch)[within * self.batch : (within + 1) * self.batch]]
        share = (rows[:, 1] - rows[:, 0]).sum().float()
        return self._batch(rows[self.rank :: self.world], share)

    def _order(self, epoch: int) -> Tensor:
        """The order of rows in an epoch; that of the latest is kept."""
        if self._latest is None or self._latest[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
            self._latest = epoch, torch.from_numpy(drawn)
        return self._latest[1]

    def _single(self, targets: Tensor) -> Tensor:
        """First and past-the-last target of each row [n, 2]."""
        return torch.stack([targets, targets + 1], dim=1)

    def _windows(self, targets: Tensor) -> Tensor:
        """Runs of consecutive targets of a user, cut to at most a window (behind the first: half a window)."""
        users = self.sequences.users(targets)
        starts = self.sequences.offsets[users]
        place = targets - starts
        half = max(1, self.length // 2)
        piece = torch.where(place < self.length, 0, 1 + (place - self.length) // half)
        new = torch.ones_like(targets, dtype=torch.bool)
        new[1:] = (users[1:] != users[:-1]) | (piece[1:] != piece[:-1]) | (targets[1:] != targets[:-1] + 1)
        first = torch.nonzero(new).flatten()
        last = torch.cat([first[1:], torch.tensor([len(targets)])]) - 1
        return torch.stack([targets[first], targets[last] + 1], dim=1)

    def _batch(self, rows: Tensor, share: Tensor) -> SequenceBatch:
        ends = rows[:, 1]
        starts = self.sequences.offsets[self.sequences.users(ends - 1)]
        width = int((ends - starts).clamp(max=self.length).max()) if len(rows) else 2
        histories = self.sequences.histories(ends - 1, width - 1)
        items = torch.cat([histories, self.sequences.items[ends - 1][:, None]], dim=1)
        places = ends[:, None] - torch.arange(width, 0, -1)
        targets = (places >= rows[:, :1]) & self.known[places.clamp(min=0)] & (places > starts[:, None])
        return SequenceBatch(items, targets, share)
