"""Residual k-means: each level clusters what the levels before it left over."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.errors import ConfigError
from genrl.options import option, seed_option
from genrl.progress import progress_bar
from genrl.sid.embed import EmbeddingConfig, embed_items
from genrl.sid.registry import SID_BUILDERS, SidConfig
from genrl.sid.table import CODES, LEVELS, SidTable, make_table

CHUNK = 16384
"""Points whose distances are held at once."""
STARTS = 8
"""Seedings tried per level."""
WARM_UP = 3
"""Lloyd iterations after which the seedings are compared."""


@dataclass(frozen=True)
class KMeansConfig(SidConfig):
    """Options of `kmeans`."""

    levels: int = option(3, ge=1, le=LEVELS)
    """Codes per item before collisions are resolved."""
    codes: int = option(12, ge=2, le=CODES)
    """Codes per level. 12 suits the toy catalogue; 256 is usual for ten thousand items."""
    iterations: int = option(25, ge=1)
    """Lloyd iterations per level."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Item embeddings."""
    seed: int = seed_option(0)
    """Seed of the clustering; independent of the run's seed so that runs share one table."""


@SID_BUILDERS.register(
    "kmeans",
    config=KMeansConfig,
    title="residual k-means",
    paper="arXiv:2502.18965 (OneRec), balanced variant left out",
)
def kmeans(config: KMeansConfig, dataset: Dataset) -> SidTable:
    """Cluster item embeddings into `levels` codes.

    Raises:
        ConfigError: if there are more codes than items.
    """
    items = len(dataset.catalog)
    if config.codes > items:
        raise ConfigError(
            f"sid.codes is {config.codes}, but the catalogue has {items:,} items; k-means needs 2 .. {items}. "
            f"Set a smaller sid.codes (the square root of the number of items is a good start)."
        )
    points = embed_items(config.embedding, dataset)
    codes = residual_kmeans(points, config.levels, config.codes, config.iterations, config.seed)
    return make_table(codes, (config.codes,) * config.levels, dataset.catalog, config.collisions)


def residual_kmeans(points: Tensor, levels: int, codes: int, iterations: int, seed: int) -> Tensor:
    """Quantise points [I, D] level by level into codes [I, K] int64, the same for any number of threads.

    r_1 = x;  c_l = argmin_c |r_l - mu_lc|^2;  r_{l+1} = r_l - mu_l,c_l
    """
    generator = torch.Generator().manual_seed(seed)
    residual = points.to(torch.float32).clone()
    assigned = []
    with _single_thread(), progress_bar("k-means", levels * STARTS, "seedings") as advance:
        for _ in range(levels):
            lengths = (residual**2).sum(dim=1)
            centres = _lloyd(residual, lengths, _start(residual, lengths, codes, generator, advance), iterations)
            level = _nearest(residual, lengths, centres)[0]
            residual = residual - centres[level]
            assigned.append(level)
    return torch.stack(assigned, dim=1)


def _start(
    points: Tensor, lengths: Tensor, codes: int, generator: torch.Generator, advance: Callable[[int], None]
) -> Tensor:
    """The best of several seedings after a few iterations: a bad seeding merges clusters for good."""
    seedings = []
    for _ in range(STARTS):
        seedings.append(_lloyd(points, lengths, _plus_plus(points, lengths, codes, generator), WARM_UP))
        advance(1)
    errors = torch.stack([_nearest(points, lengths, centres)[1].double().sum() for centres in seedings])
    return seedings[int(errors.argmin())]


def _plus_plus(points: Tensor, lengths: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn in proportion to their squared distance, the one that helps most.

    With a single draw for each centre a dozen well separated clusters are met once in ten seedings; which of them then
    depends on the rounding of the machine.
    """
    chosen = torch.randint(len(points), (1,), generator=generator)
    centres = [points[chosen]]
    distances = _squared(points, lengths, centres[0]).flatten()
    trials = 2 + int(math.log(codes))
    for _ in range(codes - 1):
        mass = distances.double().cumsum(0)
        if float(mass[-1]) > 0:
            draws = torch.rand(trials, generator=generator, dtype=torch.float64) * mass[-1]
            chosen = torch.searchsorted(mass, draws, right=True).clamp(max=len(points) - 1)
        else:  # fewer distinct points than codes: the remaining centres are copies that stay unused
            chosen = torch.randint(len(points), (1,), generator=generator)
        left = torch.minimum(distances[:, None], _squared(points, lengths, points[chosen]))
        best = int(left.double().sum(0).argmin())
        centres.append(points[chosen[best]][None])
        distances = left[:, best]
    return torch.cat(centres)


def _lloyd(points: Tensor, lengths: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """Move centres to the means of their points; one without points moves to the point farthest from its centre."""
    before = None
    for _ in range(iterations):
        nearest, distances = _nearest(points, lengths, centres)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / counts.clamp(min=1)[:, None].to(sums.dtype)
        empty = torch.nonzero(counts == 0).flatten()
        farthest = torch.argsort(distances, descending=True, stable=True)[: len(empty)]
        centres[empty] = points[farthest]
    return centres


def _nearest(points: Tensor, lengths: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centre of each point and the squared distance to it: [I] int64, [I] float."""
    chunks = zip(points.split(CHUNK), lengths.split(CHUNK), strict=True)
    parts = [_squared(*chunk, centres).min(dim=1) for chunk in chunks]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _squared(points: Tensor, lengths: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [I, C], never negative: |x|^2 + |c|^2 - 2 x.c, the squared lengths |x|^2 [I] being given."""
    squares = lengths[:, None] + (centres**2).sum(dim=1)[None]
    return (squares - points @ (2 * centres).T).clamp(min=0)


@contextmanager
def _single_thread() -> Iterator[None]:
    """Sums split over threads round differently; one thread makes the codes the same on every machine size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
