"""Reference lines: rankers without learning that every results table must show."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Ranking, Targets
from genrl.catalog import Dataset, Role, Sequences
from genrl.errors import CheckpointError, DataError
from genrl.metrics.functional import distinct, exclude_history, needed_width
from genrl.options import option
from genrl.progress import progress_bar
from genrl.recommenders.base import BASELINES, Baseline, Problem

SMOOTHING = 0.1
"""Share of the probability that item-kNN gives to items by their popularity alone."""


@dataclass(frozen=True)
class ItemKNNConfig:
    """Options of `item_knn`."""

    window: int = option(10, ge=1)
    """Largest distance of two items of a user that counts; neighbours have distance 1."""
    similarity: Literal["conditional", "cosine"] = "conditional"
    """How co-occurrence is normalised."""


class Counted(Baseline):
    """A baseline of counts, which learns nothing further and ranks the catalogue once for all."""

    @abstractmethod
    def everything(self, histories: Tensor, width: int) -> Ranking:
        """Rank the catalogue for histories [P, H]; see `Baseline.best`."""

    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        if deny is None:
            return self.everything(histories, width)
        size = len(self.problem.table)
        every = self.everything(histories, min(width + deny.shape[1], size + histories.shape[1]))
        gone = torch.zeros(len(deny), size + 1, dtype=torch.bool).scatter_(1, torch.where(deny < 0, size, deny), True)
        gone[:, size] = True  # the place of padding, in rankings as in what is denied
        gone = gone.gather(1, torch.where(every.items < 0, size, every.items))
        first = gone.to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
        gone = gone.gather(1, first)
        items, scores = every.items.gather(1, first), every.scores.gather(1, first)
        return Ranking(
            _pad(items.masked_fill(gone, -1), width, -1),
            _pad(scores.masked_fill(gone, -math.inf), width, -math.inf),
        )

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Put saved counts in place, whose number is theirs alone.

        Raises:
            CheckpointError: if they are those of another baseline.
        """
        known = dict(self.named_buffers())
        if known.keys() != state.keys():
            raise CheckpointError(f"{origin} holds {', '.join(state)}, of another model than {self.name}.")
        for name, value in state.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, value)


class MostPopular(Counted):
    """The same list for everybody: most training interactions (`counts` [I], the scores) first, ties by row."""

    counts: Tensor
    order: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        ordered, order = counts.sort(descending=True, stable=True)
        self.register_buffer("counts", ordered)
        self.register_buffer("order", order)

    def likelihoods(self, histories: Tensor) -> Tensor:
        """Shares of the training interactions, each count plus 1, whatever the history."""
        counts = torch.empty_like(self.counts).scatter_(0, self.order, self.counts)
        return counts.float().log1p().log_softmax(0).expand(len(histories), -1)

    def everything(self, histories: Tensor, width: int) -> Ranking:
        items = _pad(self.order[:width], width, -1).expand(histories.shape[0], -1)
        scores = _pad(self.counts[:width].float(), width, -math.inf).expand(histories.shape[0], -1)
        return Ranking(items, scores)


class RepeatLast(Counted):
    """The user's own items, latest first, each once; then those of most training interactions (`counts` [I])."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.popular = MostPopular(counts)

    def everything(self, histories: Tensor, width: int) -> Ranking:
        popular = self.popular.everything(histories, width).items
        items = distinct(torch.cat([histories.flip(1), popular], dim=1))[:, :width]
        scores = -torch.arange(width, dtype=torch.float32).expand(items.shape)
        return Ranking(items, torch.where(items < 0, -math.inf, scores))


class ItemKNN(Counted):
    """Items that other users chose near the items of the history: neighbours by weighted co-occurrence.

    score(i) = Σ_j 2^-j · c(h_j, i) / n(h_j),   h_0 the latest item of the history, h_1 the one before, ...

    c(h, i) sums 1/d over all places of the training part where a user chose h and i at most `window` places apart, d
    being the distance; n(h) counts the interactions of h (`cosine`: sqrt(n(h) n(i)) instead). This is item-based
    collaborative filtering (Sarwar et al., WWW 2001; conditional probability: Deshpande & Karypis, TOIS 2004) with
    weights that fall with distance and age. Items that no neighbour reaches follow in order of popularity, with scores
    below 0; of equal scores the more popular item stands first. The form was chosen once, on the validation part of
    Amazon Beauty.

    Args:
        sequences: all interactions with their roles.
        catalog_size: I.
        window: largest distance that counts.
        similarity: how co-occurrence is normalised.
        known: roles whose interactions may be learnt from; for a fair line, those that the models are trained on.
        chunk: users scored at once; a chunk needs some chunk x I numbers of 8 bytes.
    """

    offsets: Tensor
    neighbours: Tensor
    similarities: Tensor
    unreached: Tensor

    def __init__(
        self,
        sequences: Sequences,
        catalog_size: int,
        window: int = 10,
        similarity: Literal["conditional", "cosine"] = "conditional",
        known: Collection[Role] = (Role.TRAIN, Role.RL),
        chunk: int = 512,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        positions = torch.nonzero(torch.isin(sequences.roles, torch.tensor([int(role) for role in known]))).flatten()
        items, users = sequences.items[positions], sequences.users(positions)
        frequency = torch.bincount(items, minlength=catalog_size)
        first, second, weights = _co_occurrence(items, users, catalog_size, window)
        norm = frequency[first].float()
        if similarity == "cosine":
            norm = (norm * frequency[second]).sqrt()
        # Neighbours as rows of a table: item h has the entries offsets[h] .. offsets[h + 1] - 1.
        offsets = torch.nn.functional.pad(torch.bincount(first, minlength=catalog_size).cumsum(0), (1, 0))
        self.register_buffer("offsets", offsets)
        self.register_buffer("neighbours", second)
        self.register_buffer("similarities", weights / norm)
        order = frequency.argsort(descending=True, stable=True)
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(catalog_size))
        self.register_buffer("unreached", -(ranks + 1).float() / catalog_size)

    def likelihoods(self, histories: Tensor) -> Tensor:
        """(1 - `SMOOTHING`) of the probability goes to reached items by their scores, the rest to all by popularity.

        p(i) = (1 - s) score(i) / sum of scores + s / rank(i) / sum of 1 / rank, rank 1 the most popular; Jelinek and
        Mercer's interpolation. Behind a history that reaches nothing it is popularity alone.
        """
        scores = torch.cat([self._scores(part) for part in histories.split(self.chunk)])
        popular = 1 / (-self.unreached * len(self.unreached))  # one over the rank
        popular = popular / popular.sum()
        total = scores.sum(1, keepdim=True)
        mixed = (1 - SMOOTHING) * scores / total.clamp(min=torch.finfo(scores.dtype).tiny) + SMOOTHING * popular
        return torch.where(total > 0, mixed, popular).log()

    def everything(self, histories: Tensor, width: int) -> Ranking:
        places = self.unreached.argsort().argsort()  # in order of popularity, the most popular last
        parts = [self._rank(part, width, places) for part in histories.split(self.chunk)]
        return Ranking(*map(torch.cat, zip(*parts, strict=True)))

    def _rank(self, histories: Tensor, width: int, places: Tensor) -> tuple[Tensor, Tensor]:
        scores, size = self._scores(histories), len(self.unreached)
        # Scores are not negative, so that their bits stand in their order; topk alone orders equal ones by its width.
        keys = scores.view(torch.int32).long()
        keys <<= 32
        keys += places
        order = keys.topk(min(width, size), dim=1).indices
        best = torch.where(scores > 0, scores, self.unreached).gather(1, order)
        return _pad(order, width, -1), _pad(best, width, -math.inf)

    def _scores(self, histories: Tensor) -> Tensor:
        """Scores [P, I] of items near those of histories [P, H]; 0 where no neighbour reaches."""
        size, device = len(self.unreached), histories.device
        latest_first = histories.flip(1)
        rows, ages = torch.nonzero(latest_first >= 0, as_tuple=True)
        items = latest_first[rows, ages]
        lengths = self.offsets[items + 1] - self.offsets[items]
        # One flat list of (row, neighbour): every history item is replaced by its slice of the neighbour table.
        owner = torch.repeat_interleave(torch.arange(len(items), device=device), lengths)
        inside = torch.arange(len(owner), device=device) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        entries = self.offsets[items][owner] + inside
        scores = torch.zeros(len(histories) * size, device=device)
        shares = self.similarities[entries] * torch.pow(0.5, ages.float())[owner]
        scores.index_add_(0, rows[owner] * size + self.neighbours[entries], shares)
        return scores.view(-1, size)


def _co_occurrence(items: Tensor, users: Tensor, size: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of different items with the sum of 1/distance, sorted by the first: first [E], second [E], weights [E]."""
    pairs, weights = [], []
    for distance in range(1, window + 1):
        together = (users[distance:] == users[:-distance]) & (items[distance:] != items[:-distance])
        before, after = items[:-distance][together], items[distance:][together]
        pairs += [torch.stack([before, after]), torch.stack([after, before])]
        weights += [torch.full((2 * len(before),), 1 / distance)]
    table = torch.sparse_coo_tensor(
        torch.cat(pairs, dim=1), torch.cat(weights), (size, size), check_invariants=False
    ).coalesce()
    return table.indices()[0], table.indices()[1], table.values()


def _pad(values: Tensor, width: int, value: float) -> Tensor:
    """Fill the last dimension up to `width`."""
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]), value=value)


def reference_lines(
    dataset: Dataset,
    role: Role,
    k: Sequence[int] = (5, 10),
    history_length: int = 20,
    positions: Tensor | None = None,
    codes: Tensor | None = None,
    level: Literal["item", "sid"] = "item",
    chunk: int = 2048,
    ties: bool = False,
) -> dict[str, dict[str, float]]:
    """Score the reference rankers on the rows that models are scored on.

    Args:
        dataset: catalogue and sequences.
        role: the part whose rows are scored, VALID or TEST.
        k: cut-offs.
        history_length: latest items a ranker sees, and what is excluded; `data.max_history` for parity with a model.
        positions: rows to score [P], e.g. the random subset that models are validated on; None for all of the role.
        codes: [I, K] SIDs, for `level="sid"`.
        level: whether a hit is the item or any item of its SID.
        chunk: rows per batch.
        ties: whether tied and untied targets are scored apart, too.

    Returns:
        Name -> metrics; each ranker stands there once more with the suffix `/history_excluded`.

    Raises:
        DataError: if there is no row to score.
    """
    from genrl.metrics.ranking import RankingMetrics  # loads torchmetrics, which ranking does without

    positions = dataset.sequences.rows(role) if positions is None else positions
    if not len(positions):
        raise DataError(f"reference lines: the {role.name.lower()} part has no rows. Check data.split.")
    catalog = dataset.catalog
    # Excluding a history removes at most its length, so that this width leaves enough items in every row.
    width = needed_width(k, codes if level == "sid" else None) + history_length
    rankers = reference_rankers(dataset)
    count = len(catalog.category_names)
    metrics = {
        f"{name}{suffix}": RankingMetrics(
            catalog.cold, catalog.categories, k, codes=codes, level=level, category_count=count, ties=ties
        )
        for name in rankers
        for suffix in ("", "/history_excluded")
    }
    with progress_bar(f"reference lines {role.name.lower()}", len(positions), "users") as advance:
        for part in positions.split(chunk):
            histories = dataset.sequences.histories(part, history_length)
            tied = dataset.sequences.tied[part].unsqueeze(1)
            targets = Targets(dataset.sequences.items[part].unsqueeze(1), tied=tied)
            for name, ranker in rankers.items():
                ranking = ranker.everything(histories, width)
                metrics[name].update(ranking, targets, history=histories)
                excluded = exclude_history(ranking, histories)
                metrics[f"{name}/history_excluded"].update(excluded, targets, history=histories)
            advance(len(part))
    return {name: metric.compute() for name, metric in metrics.items()}


def reference_rankers(dataset: Dataset) -> Mapping[str, Counted]:
    """The reference rankers of a data set, by name."""
    counts = dataset.catalog.train_counts
    return {
        "most_popular": MostPopular(counts),
        "repeat_last": RepeatLast(counts),
        "item_knn": ItemKNN(dataset.sequences, len(dataset.catalog)),
    }


@BASELINES.register("most_popular", title="Most popular")
def most_popular(*, problem: Problem) -> MostPopular:
    """The most popular items of the training part, for everybody."""
    return MostPopular(problem.dataset.catalog.train_counts)


@BASELINES.register("repeat_last", title="Repeat last")
def repeat_last(*, problem: Problem) -> RepeatLast:
    """The user's own items, latest first."""
    return RepeatLast(problem.dataset.catalog.train_counts)


@BASELINES.register(
    "item_knn", config=ItemKNNConfig, title="Item-kNN on co-occurrence", paper="Sarwar et al., WWW 2001"
)
def item_knn(config: ItemKNNConfig, *, problem: Problem) -> ItemKNN:
    """Neighbours of the items of the history by weighted co-occurrence."""
    dataset = problem.dataset
    return ItemKNN(dataset.sequences, len(dataset.catalog), config.window, config.similarity)
