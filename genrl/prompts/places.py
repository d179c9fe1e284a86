"""Lines of JSON that name an interaction of a user, and which one is meant."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.errors import DataError, suggest
from genrl.given import parsed


def record_of(line: str, form: str) -> dict[str, Any]:
    """The object that a line holds, with ids under `user` and `item`.

    Raises:
        DataError: with `form`, how a line is written, if it is another one.

    Example:
        >>> record_of('{"user": 7, "item": "x"}', "..")
        {'user': 7, 'item': 'x'}
    """
    try:
        record = parsed(line)
    except ValueError as error:
        raise DataError(f"{error}. A line is {form}.") from error
    if not isinstance(record, dict):
        raise DataError(f"a {type(record).__name__}, not an object. A line is {form}.")
    for key in ("user", "item"):
        if not is_id(record.get(key)):
            raise DataError(f"{key!r} is {record.get(key)!r}, not an id. A line is {form}.")
    return record


def is_id(value: object) -> bool:
    """Whether a value of a record can be the id of a user or an item."""
    return isinstance(value, str | int) and not isinstance(value, bool)


class Places:
    """Positions of interactions as a file names them: by user and item, of which the latest is meant.

    Args:
        dataset: the interactions.
        roles: parts of the data that may be named.
        what: is said of them in the file, in the singular, e.g. trace.
    """

    def __init__(self, dataset: Dataset, roles: tuple[Role, ...], what: str) -> None:
        self.dataset, self.roles, self.what = dataset, roles, what
        self.users = {user: number for number, user in enumerate(dataset.sequences.user_ids)}

    def nameable(self) -> Tensor:
        """Positions that a line can name, ascending: [P] int64."""
        sequences = self.dataset.sequences
        positions = self._allowed(sequences.roles).nonzero()[:, 0].flip(0)
        pairs = sequences.users(positions) * len(self.dataset.catalog) + sequences.items[positions]
        _, latest = np.unique(pairs.numpy(), return_index=True)
        return positions[torch.from_numpy(latest)].sort().values

    def __call__(self, record: Mapping[str, Any]) -> int:
        """The position that a record means.

        Raises:
            DataError: if there is no such user or item, or none of that user in these parts of the data.
        """
        user, item = str(record["user"]), str(record["item"])
        number = self.users.get(user)
        if number is None:
            raise DataError(
                f"user {user!r} is not in the data set ({len(self.users):,} users)."
                f"{suggest(user, list(self.users)[:10_000])} Use an id of the interactions."
            )
        sequences = self.dataset.sequences
        start, stop = sequences.offsets[number : number + 2].tolist()
        places = torch.nonzero(sequences.items[start:stop] == self.dataset.catalog.row(item)).flatten() + start
        roles = sequences.roles[places]
        known = places[self._allowed(roles)]
        if len(known):
            return int(known[-1])
        held_out = [Role(role).name.lower() for role in roles.tolist() if role != Role.HISTORY]
        if held_out:
            raise DataError(
                f"item {item!r} of user {user!r} is held out (part {held_out[0]}): a {self.what} for it would leak it "
                f"into training. Remove the line."
            )
        reason = "is only shown as history, never a target" if len(places) else "is not in the user's history"
        raise DataError(
            f"item {item!r} of user {user!r} {reason}. {self.what.capitalize()}s are for training positions."
        )

    def _allowed(self, roles: Tensor) -> Tensor:
        return torch.isin(roles, torch.tensor([int(role) for role in self.roles], dtype=roles.dtype))
