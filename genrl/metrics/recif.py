"""Metrics of RecIF-Bench as OpenOneRec's evaluator defines them (arXiv:2512.24762, its code version v1.0).

Letters: P rows, W predictions in the order of the beam, M gold items. -1 is a prediction that names nothing, or no gold
item. Unlike `genrl.metrics.functional` nothing is made distinct before it is cut at k: a prediction that repeats an
earlier one, or names nothing, uses up its place. Every row counts: one without predictions or without gold scores 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genrl.errors import DataError
from genrl.metrics.functional import first_occurrences, seen


def any_hit(predicted: Tensor, gold: Tensor, k: int) -> Tensor:
    """Pass@k: whether any of the first k predictions [P, W] is among the gold items [P, M]: float64 [P], 0 or 1.

    Divided by all rows when it is averaged.

    Example:
        >>> any_hit(torch.tensor([[7, 3], [7, -1]]), torch.tensor([[3, 9], [-1, -1]]), 2).tolist()
        [1.0, 0.0]
    """
    return _hits(predicted, gold, k).any(dim=1).double()


def first_hit(predicted: Tensor, gold: Tensor, k: int) -> Tensor:
    """Position1_Pass@k: as `any_hit`, for the first gold item alone.

    Args:
        predicted: [P, W].
        gold: [P, M], of which column 0 counts.
        k: cut-off.

    Example:
        >>> first_hit(torch.tensor([[7, 3]]), torch.tensor([[9, 3]]), 2).tolist()
        [0.0]
    """
    return any_hit(predicted, gold[:, :1], k)


def gold_found(predicted: Tensor, gold: Tensor, k: int) -> Tensor:
    """Recall@k: |distinct first k predictions ∩ gold| / |distinct gold|: float64 [P].

    The divisor is the number of gold items, not min(k, that number): with k = 1 and five gold items a row reaches 1/5.

    Example:
        >>> gold_found(torch.tensor([[3, 3, 9]]), torch.tensor([[3, 9, 3, 4]]), 2).tolist()
        [0.3333333333333333]
    """
    distinct = first_occurrences(gold)
    found = (_hits(predicted, gold, k) & distinct).sum(dim=1)
    return found.double() / distinct.sum(dim=1).clamp(min=1)


def _hits(predicted: Tensor, gold: Tensor, k: int) -> Tensor:
    """Which gold items [P, M] are among the first k predictions [P, W]: bool [P, M]."""
    if k < 1:
        raise ValueError(f"k={k}: the cut-off must be at least 1")
    return seen(gold, predicted[:, :k])


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve over all rows together: scores [P], labels [P] of 0 and 1 -> float64 [].

    A tie of a positive and a negative row counts one half, so no order of the rows changes the result. Not a number
    where one of the labels is missing; the evaluator says 0.5 there.

    Raises:
        DataError: for a score that is not a number.

    Example:
        >>> auc(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0])).item()
        0.875
    """
    from sklearn.metrics import roc_auc_score

    if bool(scores.isnan().any()):
        raise DataError(f"row {int(scores.isnan().byte().argmax())} has a score that is not a number.")
    both = len(labels.unique()) == 2
    return torch.tensor(roc_auc_score(labels.cpu(), scores.cpu()) if both else math.nan, dtype=torch.float64)
