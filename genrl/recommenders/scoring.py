"""The best of the scores of the whole catalogue."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from genrl.batches import Ranking


def best_items(scores: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
    """Rank the catalogue by its scores [P, I], without the rows `deny` [P, D]; rows with fewer items end in -1."""
    size = scores.shape[1]
    if deny is not None:
        spare = pad(scores, (0, 1))  # its last column takes what denies nothing
        scores = spare.scatter(1, torch.where(deny < 0, size, deny), -math.inf)[:, :size]
    best, items = scores.topk(min(width, size), dim=1)
    items = torch.where(best.isneginf(), -1, items)
    fill = (0, width - items.shape[1])
    return Ranking(pad(items, fill, value=-1), pad(best, fill, value=-math.inf))
