"""What a finished run answers, from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.catalog.items import Catalog
from genrl.config.saved import read_saved
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, DataError
from genrl.manifest import METRICS, check
from genrl.progress import progress_bar
from genrl.recommenders import Baseline, Recommender
from genrl.runs.inputs import check_inputs, modules
from genrl.training.portions import ranking_portions

if TYPE_CHECKING:
    from genrl.recommenders.policy import PolicyRecommender

BATCH = 256
"""Histories that are answered at a time."""


@dataclass(frozen=True)
class Recommendation:
    """What is recommended after one history."""

    items: list[tuple[str, str, float]]
    """(item id, title, score), best first. The score is a log-probability, or what a baseline calls its score."""
    thinking: list[str] | None
    """Text of each think block that led to the first item; None: the run does not think."""


def load_recommender(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Recommender]:
    """Load what a finished run has learnt, wherever its folder is now, without the data it learnt from.

    Returns:
        The configuration of the run under the overrides, and its recommender.

    Raises:
        UntrustedError: if it names code that nobody has said may run.
        CheckpointError: if the folder is no finished run, its weights are missing, damaged or of another model, are to
            be decoded in another way, or a plug-in or the base model is not the one that the run was trained with.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder ({'a file' if folder.is_file() else 'no config.yaml there'}).{inside(folder)}"
        )
    refuse_unfinished(folder)
    check(folder)
    config = run_config(folder, overrides)
    check_inputs(folder, config, ["model.name", *modules(config)])
    if config.stages == ["baseline"]:
        return config, Baseline.load(folder, tuple(overrides))
    from genrl.recommenders.policy import PolicyRecommender  # loads transformers, which most baselines do without

    return config, PolicyRecommender.load(folder, tuple(overrides))


def inside(folder: Path) -> str:
    """What to give in the place of a folder that is no run."""
    runs = sorted(path.parent.name for path in folder.glob(f"*/{METRICS}") if (path.parent / "config.yaml").is_file())
    if not runs:
        return " Give runs/<experiment>/<objective>-s<seed>."
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return f" It holds finished runs: {', '.join(runs[:5])}{more}. Give one of them, e.g. {folder / runs[0]}."


def refuse_unfinished(folder: Path) -> None:
    """Refuse a run without its last file.

    Raises:
        CheckpointError: saying how to go on with it.
    """
    if (folder / "config.yaml").is_file() and not (folder / METRICS).exists():
        raise CheckpointError(
            f"{folder} is an unfinished run (no {METRICS} there), whose weights are not final. Go on with it with the "
            f"command in its command.txt and --resume."
        )


def run_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run, wherever its folder is now."""
    config = read_saved(folder)
    home, experiment = folder.resolve(), Path(config.experiment).parts
    if home.parts[-1 - len(experiment) : -1] == experiment:  # what its experiment shares lies beside it
        config.output = str(home.parents[len(experiment)])
    return read_saved(folder, overrides, {"output": config.output}) if overrides else config


def recommend(
    folder: Path,
    histories: Sequence[Sequence[str]],
    top: int,
    *,
    exclude_seen: bool = False,
    only: Sequence[str] | None = None,
    cold: bool = False,
    exact: bool = False,
    days: Sequence[Sequence[float]] | None = None,
    overrides: Sequence[str] = (),
) -> list[Recommendation]:
    """The best items for histories given as item ids or titles, oldest first, with the thinking that led to them.

    Args:
        folder: of a finished run.
        histories: item ids or titles.
        top: items for each history; fewer where fewer are allowed.
        exclude_seen: leave out the items of the history.
        only: item ids or titles that may be recommended (in stock, say); None: all.
        cold: recommend cold items only.
        exact: search until the list is provably the best of all allowed items.
        days: how many days ago each item of each history was chosen, for runs whose prompts tell it
            (`prompt.window_days`).
        overrides: `key=value` texts over the configuration of the run, a moved `model.name` for one.

    Raises:
        DataError: if no item is allowed, or a name is not in the catalogue or stands for several items.
        UnsupportedError: if `exact` is asked of thinking between codes, or of a baseline that does not say it is exact.
    """
    _, recommender = load_recommender(folder, overrides)
    allowed = None if only is None else [recommender.problem.dataset.catalog.row_of(name) for name in only]
    found: list[Recommendation] = []
    portions = ranking_portions()
    with progress_bar("recommend", len(histories), "histories") as advance:
        for start in range(0, len(histories), BATCH):
            part = histories[start : start + BATCH]
            told = None if days is None else days[start : start + BATCH]

            def answers(
                own: slice, part: Sequence[Sequence[str]] = part, told: Sequence[Sequence[float]] | None = told
            ) -> list[Recommendation]:
                ago = None if told is None else told[own]
                return answer(recommender, part[own], top, exclude_seen, allowed, cold, exact, ago)

            found += [each for few in portions.over(len(part), answers) for each in few]
            advance(len(part))
    return found


def answer(
    recommender: Recommender,
    histories: Sequence[Sequence[str]],
    top: int,
    exclude_seen: bool = False,
    only: Sequence[int] | None = None,
    cold: bool = False,
    exact: bool = False,
    days: Sequence[Sequence[float]] | None = None,
) -> list[Recommendation]:
    """What a loaded recommender recommends; the arguments are those of `recommend`, `only` as catalogue rows."""
    catalog = recommender.problem.dataset.catalog
    top = min(top, len(catalog))
    seen = _padded([[catalog.row_of(name) for name in history] for history in histories])
    pool = None if only is None and not cold else _pool(catalog, only, cold).expand(len(seen), -1)
    ages = None if days is None else _ages(days, histories)
    requests = Requests(*recommender.write(seen, pool, ages), seen, pool=pool, deny=seen if exclude_seen else None)
    if recommender.thinks:
        ranking, thinking = cast("PolicyRecommender", recommender).answer(requests, top, exact)
    else:
        ranking, thinking = recommender.rank(requests, top, exact), None
    named = _named(ranking.to("cpu"), catalog, top)
    return [Recommendation(items, thinking[row] if thinking else None) for row, items in enumerate(named)]


def _pool(catalog: Catalog, only: Sequence[int] | None, cold: bool) -> Tensor:
    """Catalogue rows [C] that may be recommended."""
    allowed = catalog.cold.clone() if cold else torch.ones(len(catalog), dtype=torch.bool)
    if only is not None:
        allowed &= torch.zeros_like(allowed).index_fill(0, torch.tensor(only).long(), True)
    if not bool(allowed.any()):
        raise DataError("no item may be recommended: none of the catalogue is left. Allow more items.")
    return allowed.nonzero()[:, 0]


def _padded(histories: Sequence[Sequence[int]]) -> Tensor:
    """Histories as one tensor [P, H], padded with -1 on the left."""
    width = max((len(history) for history in histories), default=0) or 1
    rows = [[-1] * (width - len(history)) + list(history) for history in histories]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, width)


def _ages(days: Sequence[Sequence[float]], histories: Sequence[Sequence[str]]) -> Tensor:
    """Days from each item of a history to the latest, from days ago: [P, H] float64, 0 pads on the left.

    Raises:
        DataError: naming the history whose days are not one falling number from 0 on for each of its items.
    """
    width = max(map(len, histories))
    rows = []
    for ago, history in zip(days, histories, strict=True):
        finite = all(isfinite(each) and each >= 0 for each in ago)
        if len(ago) != len(history) or not finite or list(ago) != sorted(ago, reverse=True):
            raise DataError(
                f"history {', '.join(history)}: days are {', '.join(f'{each:g}' for each in ago) or 'missing'}. Give "
                f"{len(history)} numbers of at least 0, oldest first, how many days ago each item was chosen; none "
                f"may be larger than the one before."
            )
        rows.append([0.0] * (width - len(ago)) + [each - ago[-1] for each in ago])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, width)


def _named(ranking: Ranking, catalog: Catalog, top: int) -> list[list[tuple[str, str, float]]]:
    """The first items of each ranking: id, title and score."""
    return [
        [
            (catalog.item_ids[item], catalog.titles[item], score)
            for item, score in zip(items[:top], scores[:top], strict=True)
            if item >= 0
        ]
        for items, scores in zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True)
    ]
