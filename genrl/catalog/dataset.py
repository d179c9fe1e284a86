"""A data set: catalogue and sequences, from files or from the toy generator."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from genrl.catalog import splits, ties
from genrl.catalog.interactions import Events, ItemTable, item_rows, read_events, read_items, sorted_ids
from genrl.catalog.items import Catalog, cold_items
from genrl.catalog.sequences import Role, Sequences
from genrl.catalog.toy import generate
from genrl.config.checks import data_contradictions, option
from genrl.config.schema import DataConfig, RunConfig
from genrl.errors import ConfigError, DataError
from genrl.options import out_of_bounds


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a run learns from."""

    catalog: Catalog
    sequences: Sequences
    name: str
    """Last folder and file of the interactions, or the name of what was generated."""
    ties: str = ""
    """What there is to say of interactions of a user at the same time; "" where there are none."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything in the data set but its name."""
        counts = self.catalog.cold.numpy().tobytes()
        parts = f"{self.catalog.fingerprint}{self.sequences.fingerprint}".encode() + counts
        if self.catalog.attributes:
            parts += repr(sorted(self.catalog.attributes.items())).encode("utf-8", "surrogatepass")
        return hashlib.sha256(parts).hexdigest()[:16]


def load_dataset(config: DataConfig) -> Dataset:
    """Read or generate a data set, filter and split it.

    Raises:
        ConfigError: if options contradict each other.
        DataError: if a file, column or row cannot be used, or a part of the split is empty.

    Example:
        >>> from genrl.config.schema import DataConfig, ToyConfig
        >>> dataset = load_dataset(DataConfig(toy=ToyConfig(users=50, items=60)))
        >>> len(dataset.catalog), len(dataset.sequences.user_ids)
        (60, 50)
    """
    _check(config)
    items, events, name = _toy(config) if config.source == "toy" else _files(config)
    items, events = _filter(items, events, config.k_core)
    events = events.take(np.lexsort((events.rows, events.order, events.users)))
    _refuse_backwards(events)
    events, moments = _moments(events, config)
    sequences = _sequences(events, moments, config)
    said = ties.in_words(sequences.tied.numpy(), config.ties, _sorting(events, items, config), config.ties_seed)
    return Dataset(_catalog(items, sequences, config), sequences, name, said)


def _check(config: DataConfig) -> None:
    contradictions = ((problem.keys[0], problem.reason) for problem in data_contradictions(config))
    for key, reason in (*out_of_bounds(DataConfig, vars(config), "data."), *contradictions):
        raise ConfigError(f"{key} = {option(RunConfig(data=config), key)!r}: {reason}.")


def _toy(config: DataConfig) -> tuple[ItemTable, Events, str]:
    items, events = generate(config.toy)
    return items, events if config.time_unit else replace(events, clock=None), "toy"


def _files(config: DataConfig) -> tuple[ItemTable, Events, str]:
    source = str(config.interactions)
    events = read_events(source, config)
    if config.items is None:
        ids = sorted_ids(events.item_ids)
        items = ItemTable(ids, [""] * len(ids), [None] * len(ids), [""] * len(ids))
    else:
        items = read_items(config.items, config)
    rows = item_rows(events, items.item_ids, config.items or source)
    name = "/".join(Path(source).parts[-2:])
    return items, replace(events, items=rows, item_ids=items.item_ids), name


def _filter(items: ItemTable, events: Events, minimum: int) -> tuple[ItemTable, Events]:
    """Apply k-core and renumber users and items; without it, users are renumbered only."""
    if minimum > 1:
        keep = splits.k_core(events.users, events.items, minimum)
        if not keep.any():
            raise DataError(f"data.k_core: {minimum} leaves no interaction of {len(events):,}. Choose a smaller k.")
        events = events.take(keep)
        rows, dense = np.unique(events.items, return_inverse=True)
        items = items.take(rows)
        events = replace(events, items=dense.astype(np.int64), item_ids=items.item_ids)
    numbers, users = np.unique(events.users, return_inverse=True)
    user_ids = [events.user_ids[number] for number in numbers]
    return items, replace(events, users=users.astype(np.int64), user_ids=user_ids)


def _moments(events: Events, config: DataConfig) -> tuple[Events, np.ndarray]:
    """Settle the order of ties, and number what is divided and seen as one: [N] int64.

    A split column and rows that are history only say more than the time: what they tell apart is never exchanged.
    """
    parts = events.parts if config.split == "column" else events.parts == Role.HISTORY
    runs = ties.moments(events.users, events.times, parts)
    if config.ties != "file":
        events = events.take(ties.shuffled(runs, events.items, config.ties_seed))
    return events, runs if config.ties == "together" else np.arange(len(events))


def _refuse_backwards(events: Events) -> None:
    """Refuse a clock that runs backwards within a user, whose interactions stand in another order than their times."""
    if events.clock is None:
        return
    back = (np.diff(events.clock) < 0) & (np.diff(events.users) == 0)
    if back.any():
        row = int(back.argmax()) + 1
        raise DataError(
            f"{events.place(row)}: user {events.user_ids[int(events.users[row])]!r} has an earlier time here than at "
            f"the place before ({int(back.sum()):,} such rows), and data.time_unit asks for a clock. Sort by the time "
            f"(data.columns.position=null), or set data.time_unit=null."
        )


def _sorting(events: Events, items: ItemTable, config: DataConfig) -> tuple[str, float] | None:
    """The column that ties stand in the order of, if they keep the order of the files."""
    tied = np.concatenate([[False], np.diff(ties.moments(events.users, events.times)) == 0])
    if config.ties != "file" or not tied.any():
        return None
    names = config.columns
    words = {names.item: items.item_ids, names.title or "": items.titles, names.category or "": items.categories}
    columns = {name: ties.ranked(values)[events.items] for name, values in {**words, **items.attributes}.items()}
    return ties.sorting(tied, columns | dict(events.feedback))


def _sequences(events: Events, moments: np.ndarray, config: DataConfig) -> Sequences:
    """Give every interaction its role; they are sorted by user and time."""
    counts = np.bincount(events.users, minlength=len(events.user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    starts = np.unique(moments, return_index=True)[1]
    roles = _roles(events, offsets, starts, config)[moments]
    _refuse_empty(roles, config)
    return Sequences(
        items=torch.from_numpy(events.items),
        roles=torch.from_numpy(roles),
        times=torch.from_numpy(events.times),
        offsets=torch.from_numpy(offsets),
        user_ids=tuple(events.user_ids),
        feedback={name: torch.from_numpy(values) for name, values in events.feedback.items()},
        moments=torch.from_numpy(starts[moments]) if len(starts) < len(events) else None,
        clock=None if events.clock is None else torch.from_numpy(events.clock),
    )


def _roles(events: Events, offsets: np.ndarray, starts: np.ndarray, config: DataConfig) -> np.ndarray:
    """Role of each moment, which begin at `starts`; offsets count interactions."""
    offsets, history_only = np.searchsorted(starts, offsets), events.parts == Role.HISTORY
    if config.split == "leave_one_out":
        roles = splits.leave_one_out(offsets, history_only[starts])
    elif config.split == "temporal":
        roles = splits.temporal(events.times, history_only, config.valid_fraction, config.test_fraction)[starts]
    else:
        roles = events.parts[starts]
    roles = splits.hide_first_targets(roles, offsets)
    late = splits.first_disorder(roles, offsets)
    if late is not None:
        row = int(starts[late])
        raise DataError(
            f"{events.place(row)}: user {events.user_ids[int(events.users[row])]!r} has a "
            f"{Role(roles[late]).name.lower()} row after a {Role(roles[late - 1]).name.lower()} row. Within a user the "
            f"order must be history_only, train, valid, test. Check data.columns.time, .position and .split."
        )
    return splits.hold_out_for_rl(roles, offsets, config.rl_holdout)


def _refuse_empty(roles: np.ndarray, config: DataConfig) -> None:
    wanted = {
        Role.TRAIN: "Give more interactions per user, or a smaller data.k_core.",
        Role.VALID: "Check data.split, data.valid_fraction and the lengths of the users' sequences.",
        Role.TEST: "Check data.split, data.test_fraction and the lengths of the users' sequences.",
    }
    if config.rl_holdout:
        wanted[Role.RL] = "No user has two training interactions; set data.rl_holdout=0 or give longer sequences."
    together = " With data.ties=together, interactions of equal time count as one." * (config.ties == "together")
    for role, remedy in wanted.items():
        if not (roles == role).any():
            raise DataError(
                f"the {role.name.lower()} part is empty after data.split: {config.split} of {len(roles):,} "
                f"interactions. {remedy}{together}"
            )


def _catalog(items: ItemTable, sequences: Sequences, config: DataConfig) -> Catalog:
    trained = (sequences.roles == int(Role.TRAIN)) | (sequences.roles == int(Role.RL))
    counts = torch.bincount(sequences.items[trained], minlength=len(items.item_ids))
    cold = cold_items(counts, config.cold_fraction, config.cold_rule)
    return Catalog.from_table(
        items.item_ids, items.titles, items.categories, items.texts, counts, cold, items.attributes
    )
