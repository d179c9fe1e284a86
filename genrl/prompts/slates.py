"""Files of slates: what a policy wrote and was rewarded for, as something to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role, Sequences
from genrl.errors import DataError
from genrl.given import lines_of
from genrl.metrics.functional import seen
from genrl.prompts.places import Places, is_id, record_of

TAUGHT = (Role.TRAIN, Role.RL)
"""Parts of the data whose targets training knows, so that a slate may be for them and hold them."""
HELD_OUT = (Role.VALID, Role.TEST)


@dataclass(frozen=True)
class WrittenSlates:
    """Slates of a file, in its order."""

    positions: Tensor
    """[n] positions of the targets in `dataset.sequences`; the prompt of a slate is what stands before."""
    items: Tensor
    """[n, L] catalogue rows."""
    lines: tuple[str, ...]
    """`FILE:NUMBER` of each."""

    def check_pools(self, pools: Tensor) -> None:
        """Refuse slates with items that their prompts do not list.

        Args:
            pools: [n, C] catalogue rows, -1 pads.

        Raises:
            DataError: naming the first line.
        """
        outside = ~seen(self.items, pools)
        if bool(outside.any()):
            row = int(outside.any(1).byte().argmax())
            raise DataError(
                f"{self.lines[row]}: {int(outside[row].sum())} of the items are not in the candidate pool that the "
                f"prompt lists. Write slates with the same options of section data.pool."
            )


def slate_places(dataset: Dataset) -> Places:
    """Which interactions a line of a file of slates can be for."""
    return Places(dataset, TAUGHT, "slate")


def read_slates(path: str | Path, dataset: Dataset, length: int) -> WrittenSlates:
    """Read a JSONL file of slates for prompts of the training part, or of what is held out for stage `rl`.

    A line is {"user": id, "item": id, "items": [L ids]}; user and item name the latest such position of that user with
    that item, whose prompt the slate answers. Other keys (reward, run ...) are ignored. A slate may hold any items but
    those that the user chose in validation or test and nowhere else: nobody could tell such a slate from a leak.

    Raises:
        DataError: if the file is missing or empty; with the line, if a line cannot be used.
    """
    places, form = slate_places(dataset), _form(length)
    positions, slates, lines = [], [], []
    for line, text in lines_of(path, "activate.path"):
        try:
            record = record_of(text, form)
            positions.append(places(record))
            slates.append(_items(record, dataset, length, form))
            later = _told(dataset.sequences, positions[-1], slates[-1])
            if later is not None:
                raise DataError(
                    f"the slate holds item {dataset.catalog.item_ids[later]!r}, which user {record['user']!r} chose in "
                    f"a part that is held out: it would leak into training. Remove the line."
                )
        except DataError as error:
            raise DataError(f"{line}: {error}") from error
        lines.append(line)
    if not slates:
        raise DataError(f"{path}: no slates. Write one per line: {form}.")
    return WrittenSlates(torch.tensor(positions), torch.tensor(slates), tuple(lines))


def held_out_items(sequences: Sequences, positions: Tensor) -> Tensor:
    """Items that the users of positions [P] chose in validation or test and nowhere else: [P, H], -1 pads."""
    found = [_held_out(sequences, user) for user in sequences.users(positions).tolist()]
    width = max((len(items) for items in found), default=0)
    rows = [sorted(items) + [-1] * (width - len(items)) for items in found]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(found), width)


def _held_out(sequences: Sequences, user: int) -> set[int]:
    start, stop = sequences.offsets[user : user + 2].tolist()
    items, roles = sequences.items[start:stop].tolist(), sequences.roles[start:stop].tolist()
    parts = [{item for item, role in zip(items, roles, strict=True) if (role in HELD_OUT) == out} for out in (1, 0)]
    return parts[0] - parts[1]


def _told(sequences: Sequences, position: int, slate: list[int]) -> int | None:
    """The first item of a slate that only the held-out part of its user could tell."""
    later = _held_out(sequences, int(sequences.users(torch.tensor([position]))))
    return next((item for item in slate if item in later), None)


def _form(length: int) -> str:
    return f'{{"user": .., "item": .., "items": [{length} ids]}}'


def _items(record: Mapping[str, Any], dataset: Dataset, length: int, form: str) -> list[int]:
    """Catalogue rows of a slate."""
    given = record.get("items")
    if not isinstance(given, list) or not all(map(is_id, given)):
        raise DataError(f"'items' must be a list of ids. A line is {form}.")
    if len(given) != length:
        raise DataError(
            f"{len(given)} items, but slates have layout.length={length}. Write slates with that option, or set it "
            f"to {len(given)}."
        )
    repeated = [item for item, count in Counter(map(str, given)).items() if count > 1]
    if repeated:
        raise DataError(f"item {repeated[0]!r} stands in the slate more than once. Remove the line.")
    return [dataset.catalog.row(str(item)) for item in given]
