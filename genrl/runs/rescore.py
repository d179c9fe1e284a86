"""Score a finished run again, beside the data that it was made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.runs import tables
from genrl.runs.evaluate import evaluate
from genrl.runs.inputs import check_inputs
from genrl.runs.recommend import load_recommender
from genrl.runs.record import references, written
from genrl.runs.session import Session
from genrl.training.fitting import quiet_libraries


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Session:
    """Load a finished run beside the data that it was made with.

    Catalogue, cold items and SIDs are those of the run. A data file that the overrides name may hold other rows of the
    same items.

    Raises:
        CheckpointError: as `load_recommender`, or if the data have changed.
        DataError: if other data hold other items.
    """
    config, recommender = load_recommender(folder, overrides)
    named = {word.partition("=")[0] for word in overrides}
    check_inputs(folder, config, [name for name in ("data.interactions", "data.items") if name not in named])
    dataset = _of_the_run(load_dataset(config.data), recommender.problem.dataset.catalog, folder)
    recommender.problem = replace(recommender.problem, dataset=dataset)
    return Session(config, dataset, recommender.problem.table, recommender)


def _of_the_run(now: Dataset, catalog: Catalog, folder: Path) -> Dataset:
    """Rows of today with the items of a run, its training counts and its cold items."""
    if now.catalog.item_ids != catalog.item_ids:
        new, gone = set(now.catalog.item_ids) - set(catalog.item_ids), set(catalog.item_ids) - set(now.catalog.item_ids)
        raise DataError(
            f"{folder} knows {len(catalog):,} items; these data have {len(now.catalog):,}, {len(new):,} of them new "
            f"to it, and lack {len(gone):,} of its own. Score it on rows of the same items and with the options of "
            f"section data that it was trained with."
        )
    kept = replace(now.catalog, train_counts=catalog.train_counts, cold=catalog.cold)
    return Dataset(kept, now.sequences, now.name)


def evaluate_run(folder: Path, *, split: str, overrides: list[str]) -> dict[str, Any]:
    """Score a finished run on a split and print the table; the run folder stays as it is."""
    quiet_libraries()
    session = load_run(folder, overrides)
    config = session.config
    scored = evaluate(session.recommender, session.batches(split), config.evaluate, split)
    lines = references(config, session.dataset, session.table.codes, split)
    results = {**lines, folder.name: written(scored)}
    tables.ranking_table(Console(), split, tables.with_ties(results), config.evaluate.k)
    return results
