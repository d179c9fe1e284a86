"""What can be done with a finished run: load, evaluate, recommend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from genrl.batches import Completions, Ranking, Requests
from genrl.catalog.items import Catalog
from genrl.config.load import load_config
from genrl.errors import CheckpointError
from genrl.layouts.base import Layout
from genrl.policy.distribution import RANKING
from genrl.policy.model import Policy
from genrl.policy.search import search
from genrl.runs import tables as report
from genrl.runs.baseline import BaselineSession, load_baseline
from genrl.recommenders.policy import check_decoding, decoding
from genrl.recommenders.policy import thinking_noise
from genrl.runs.evaluate import evaluate
from genrl.training.fitting import quiet_libraries
from genrl.files import read_json, read_weights
from genrl.runs.record import references, written
from genrl.runs.session import Session


@dataclass(frozen=True)
class Recommendation:
    """What is recommended after one history."""

    items: list[tuple[str, str, float]]
    """(item id, title, score), best first. The score is a log-probability, or what a baseline calls its score."""
    thinking: list[str] | None
    """Text of each think block that led to the first item; None: the run does not think."""


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Session | BaselineSession:
    """Rebuild a finished run, wherever its folder is now, with its trained weights.

    Raises:
        CheckpointError: if the folder is no run, or its weights are missing, damaged, of another model or to be
            decoded in another way.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder (no config.yaml there). Give runs/<experiment>/<objective>-s<seed>."
        )
    experiment = Path(load_config([folder / "config.yaml"]).experiment).parts
    depth = len(experiment)
    home = folder.resolve()
    flags = {}
    if home.parts[-1 - depth : -1] == experiment:  # its SID table lies beside it, wherever that is
        flags["output"] = str(home.parents[depth])
    config = load_config([folder / "config.yaml"], flags, list(overrides))
    if config.stages == ["baseline"]:
        return load_baseline(folder, config)
    session = Session.build(config)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        stages = read_json(folder / "metrics.json")["stages"]
        last = Path(stages["activate" if "activate" in stages else "align"]["folder"])
        weights = folder.parent / last.name / "weights.safetensors"
        if "activate" not in stages:
            session = session.plain
    for notice in check_decoding(weights, decoding(session.policy, session.layout, session.maker, config.evaluate)):
        Console().print(notice)
    session.policy.load_state(read_weights(weights), str(weights))
    return session


def evaluate_run(folder: Path, *, split: str, overrides: list[str]) -> dict[str, Any]:
    """Score a finished run on a split and print the table; the run folder stays as it is."""
    quiet_libraries()
    session = load_run(folder, overrides)
    config = session.config
    if isinstance(session, Session):
        layout, rows = session.layout.to(str(session.policy.device)), session.batches(split)
        with session.numerics():
            scored = evaluate(session.policy, layout, rows, config.evaluate, session.dataset.catalog, split)
    else:
        scored = session.evaluate((split,))[split]
    lines = references(config, session.dataset, session.table.codes, split)
    results = {**lines, folder.name: written(scored)}
    report.ranking_table(Console(), split, results, config.evaluate.k)
    return results


def recommend(
    folder: Path,
    histories: list[list[str]],
    top: int,
    *,
    exclude_seen: bool = False,
    only: list[str] | None = None,
    cold: bool = False,
    exact: bool = False,
) -> list[Recommendation]:
    """The best items for histories given as item ids or titles, oldest first, with the thinking that led to them.

    Args:
        folder: of a finished run.
        histories: item ids or titles.
        top: items for each history.
        exclude_seen: leave out the items of the history.
        only: item ids or titles that may be recommended (in stock, say); None: all.
        cold: recommend cold items only.
        exact: search until the list is provably the best of all allowed items.

    Returns:
        One recommendation for each history, of fewer than `top` items where fewer are allowed.

    Raises:
        DataError: if no item is allowed, or a name is not in the catalogue.
        UnsupportedError: if `exact` is asked of a baseline that searches with a beam, or of several trains of thought.
    """
    quiet_libraries()
    session = load_run(folder)
    catalog = session.dataset.catalog
    find = _finder(catalog)
    seen = _padded([[find(name) for name in history] for history in histories])
    allowed = catalog.cold.clone() if cold else torch.ones(len(catalog), dtype=torch.bool)
    if only is not None:
        allowed &= torch.zeros_like(allowed).index_fill(0, torch.tensor([find(name) for name in only]).long(), True)
    if isinstance(session, Session):
        ranking, thinking = _rank(session, seen, allowed, top, exclude_seen, exact)
    else:
        ranking, thinking = session.recommend(seen, allowed, top, exclude_seen, exact), [None] * len(seen)
    return [Recommendation(*each) for each in zip(_named(ranking, catalog, top), thinking, strict=True)]


def _finder(catalog: Catalog) -> Callable[[str], int]:
    """From the title or the id of an item to its row in the catalogue."""
    titles = {title: row for row, title in enumerate(catalog.titles) if title}
    return lambda name: titles[name] if name in titles else catalog.row(name)


def _padded(histories: list[list[int]]) -> Tensor:
    """Histories as one tensor [P, H], padded with -1 on the left."""
    width = max((len(history) for history in histories), default=0) or 1
    rows = [[-1] * (width - len(history)) + history for history in histories]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, width)


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


def _rank(
    session: Session, seen: Tensor, allowed: Tensor, top: int, exclude_seen: bool, exact: bool
) -> tuple[Ranking, Sequence[list[str] | None]]:
    """Rank the allowed items [I] for histories [P, H], and say what was thought."""
    policy, config = session.policy, session.config.evaluate
    tokens, mask = session.maker.render(seen[:, -session.config.data.max_history :])
    requests = Requests(tokens, mask, seen, deny=seen if exclude_seen else None).to(policy.device)
    layout = session.layout if bool(allowed.all()) else session.layout.only(allowed)
    layout = layout.to(policy.device)
    policy.eval()
    beam, first = max(config.beam, top), top if exact else 0
    sampling = replace(RANKING, thinking_temperature=config.thinking_temperature)
    with session.numerics():
        noise = thinking_noise(layout, requests, config)
        ranking, found = search(policy, layout, requests, beam, sampling, noise=noise, exact=first)
    thinking = _texts(policy, layout, found) if layout.writes_text else [None] * len(seen)
    return ranking.to("cpu"), thinking


def _texts(policy: Policy, layout: Layout, found: Completions) -> list[list[str]]:
    """Text of each think block of the first completion of each request."""
    written = [layout.blocks(tokens) for tokens in found.tokens[:: found.group_size]]
    return [[policy.tokenizer.decode(block).strip() for block in blocks] for blocks in written]
