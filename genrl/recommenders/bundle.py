"""What every kept recommender has beside its weights: the catalogue it was made for and its Semantic IDs."""

from pathlib import Path

import torch

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Sequences
from genrl.errors import CheckpointError, DataError
from genrl.files import read_json, read_weights, save_weights, write_json
from genrl.sid.table import SidTable

SIDS, ITEMS, COLUMNS = "sids.safetensors", "catalog.json", "catalog.safetensors"
"""SID of every item; ids, titles, attributes and names of categories; category, training count, whether it is cold."""


def save_problem(folder: Path, dataset: Dataset, table: SidTable) -> None:
    """Write catalogue and SID table of a data set, without its interactions and long texts."""
    catalog = dataset.catalog
    table.save(folder / SIDS)
    columns = {"categories": catalog.categories, "train_counts": catalog.train_counts, "cold": catalog.cold}
    save_weights(columns, folder / COLUMNS)
    named = {"ids": catalog.item_ids, "titles": catalog.titles, "categories": catalog.category_names}
    write_json(folder / ITEMS, {"name": dataset.name, **named, "attributes": catalog.attributes})


def read_problem(folder: Path) -> tuple[Dataset, SidTable]:
    """Read what `save_problem` wrote: a data set without interactions, and its SID table.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    if not (folder / ITEMS).is_file():
        raise CheckpointError(
            f"{folder} does not say which items it was made for (no {ITEMS} there): it was left by an earlier version, "
            f"or is not finished. Run it again with the command in its command.txt."
        )
    named = read_json(folder / ITEMS)
    try:
        catalog = Catalog(
            item_ids=tuple(named["ids"]),
            titles=tuple(named["titles"]),
            category_names=tuple(named["categories"]),
            texts=tuple(named["titles"]),
            attributes=named.get("attributes", {}),
            **read_weights(folder / COLUMNS),
        )
        table = SidTable.load(folder / SIDS)
        if len(table) != len(catalog):
            raise ValueError(f"{len(table):,} SIDs for {len(catalog):,} items")
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise CheckpointError(f"{folder}: its catalogue is damaged ({error}). Run it again.") from error
    none = torch.empty(0, dtype=torch.int64)
    sequences = Sequences(none, none.to(torch.uint8), none, torch.zeros(1, dtype=torch.int64), ())
    return Dataset(catalog, sequences, named["name"]), table
