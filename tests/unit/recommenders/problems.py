"""Small problems for recommenders that learn."""

from collections.abc import Sequence
from typing import Any

import torch

from genrl.catalog import Catalog, Dataset, Role, Sequences
from genrl.config.schema import ModelConfig
from genrl.prompts.packing import SequenceBatch, SequenceBatches
from genrl.recommenders.base import BASELINES, Problem, TrainedBaseline
from genrl.sid.table import CollisionReport, SidTable

ROLES = {"h": Role.HISTORY, "t": Role.TRAIN, "r": Role.RL, "v": Role.VALID, "e": Role.TEST}


def dataset_of(
    users: Sequence[Sequence[int]], roles: Sequence[str] | None = None, size: int | None = None, **columns: Any
) -> Dataset:
    """A data set of users' items, in order.

    Args:
        users: catalogue rows of each user.
        roles: a letter per interaction of each user (keys of `ROLES`); by default all are for training.
        size: I; by default as many as are used.
        columns: of the item table.
    """
    letters = ["t" * len(user) for user in users] if roles is None else roles
    flat = torch.tensor([item for user in users for item in user])
    parts = torch.tensor([int(ROLES[letter]) for user in letters for letter in user], dtype=torch.uint8)
    size = int(flat.max()) + 1 if size is None else size
    sequences = Sequences(
        items=flat,
        roles=parts,
        times=torch.cat([torch.arange(len(user)) for user in users]),
        offsets=torch.tensor([0, *(len(user) for user in users)]).cumsum(0),
        user_ids=tuple(str(user) for user in range(len(users))),
    )
    counts = torch.bincount(flat[torch.isin(parts, torch.tensor([0, 1]))], minlength=size)
    catalog = Catalog.from_table([str(item) for item in range(size)], **{"train_counts": counts, **columns})
    return Dataset(catalog, sequences, "small")


def problem_of(users: Sequence[Sequence[int]], size: int | None = None) -> Problem:
    """A problem whose interactions are all for training; each item has a code of its own."""
    dataset = dataset_of(users, size=size)
    codes = torch.arange(len(dataset.catalog))[:, None]
    size = len(codes)
    report = CollisionReport(size, size, 0, 1, 0.0, size, (size,), (float(size),))
    table = SidTable(codes, (size,), dataset.catalog.fingerprint, report)
    return Problem(dataset, table, ModelConfig())


ITEMS = 12
PROBLEM = problem_of([[0, 3, 3, 5], [5, 3, 11]], size=ITEMS)
"""Item 3 is the most popular, then 5."""


def model_of(name: str, **options: Any) -> Any:
    """A small encoder baseline over `PROBLEM`, ready to rank."""
    torch.manual_seed(0)
    return shaken(BASELINES.build(name, {"hidden": 8, "max_length": 5, **options}, problem=PROBLEM))


def rows_of(*rows: Sequence[int], per: str = "user") -> SequenceBatch:
    """A batch of rows, with a target at every place but the first, or at the last place only."""
    length = max(map(len, rows))
    items = torch.tensor([[-1] * (length - len(row)) + list(row) for row in rows])
    targets = torch.zeros_like(items, dtype=torch.bool)
    targets[:, 1:] = (items[:, :-1] >= 0) & (items[:, 1:] >= 0)
    if per == "target":
        targets[:, :-1] = False
    return SequenceBatch(items, targets, targets.sum().float())


def shaken(model: TrainedBaseline, seed: int = 0, scale: float = 0.3) -> TrainedBaseline:
    """A model whose weights are large enough for every place to matter, ready to rank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def train(model: TrainedBaseline, problem: Problem, steps: int, rate: float = 0.02) -> float:
    """Train on batches of 16 rows; the loss per target of the last step."""
    batches = SequenceBatches(problem.dataset, model.per, model.config.max_length + 1, batch=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    value = float("inf")
    for step in range(steps):
        batch = batches.step(step)
        loss = model.loss(batch) / batch.share
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
    model.eval()
    return value
