"""Uncertainty of a difference between two models that were scored on the same rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 4_000_000
"""Row draws held in memory at once."""


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_interval(a: Tensor, b: Tensor, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Paired bootstrap (percentile) of the mean difference a - b over rows.

    Rows are drawn with replacement, the same rows for both models, so that what makes a user easy or hard cancels. The
    interval covers the choice of users and nothing else: train with several seeds to see the noise of training.

    Args:
        a: outcome per row of one model [P], e.g. `per_row_metrics(...)["ndcg@10"]`.
        b: outcome per row of the other model [P], rows in the same order.
        seed: of the draws; equal seeds give equal intervals.
        resamples: number of bootstrap samples.
        level: coverage of the interval, in (0, 1).

    Returns:
        Mean of a - b and the ends of its interval.

    Raises:
        ValueError: if the rows do not pair up, or a number is out of range.

    Example:
        >>> paired_interval(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]))
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    if a.dim() != 1 or a.shape != b.shape or not a.numel():
        raise ValueError(
            f"paired_interval needs two vectors of the same rows, got {list(a.shape)} and {list(b.shape)}."
        )
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"paired_interval needs 0 < level < 1 and resamples >= 1, got {level} and {resamples}.")
    difference = a.detach().cpu().double() - b.detach().cpu().double()
    rows = difference.shape[0]
    generator = torch.Generator().manual_seed(seed)
    per_chunk = max(1, _CHUNK // rows)
    means = []
    for start in range(0, resamples, per_chunk):
        size = min(per_chunk, resamples - start)
        draws = torch.randint(rows, (size, rows), generator=generator)
        means.append(difference[draws].mean(dim=1))
    tail = (1 - level) / 2
    low, high = torch.quantile(torch.cat(means), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(difference.mean().item(), low, high)
