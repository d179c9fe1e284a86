"""Losses over the whole catalogue, worked out a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

CHUNK = 256
"""Rows scored at once; their scores need CHUNK x I floats."""
ChunkLoss: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Scores [m, ..., I] and the rows they are of -> sum of the losses, and its gradient (it may overwrite the scores)."""


def catalogue_loss(states: Tensor, table: Tensor, chunk_loss: ChunkLoss) -> Tensor:
    """Sum of a loss of scores over the whole catalogue: states [n, ..., hidden], table [I, hidden] -> a scalar.

    The scores are not kept. The gradient is worked out with the loss, one chunk of rows after the other: a batch needs
    the memory of a chunk, and on a CPU about half the time of scores that are kept.
    """
    loss: Tensor = _CatalogueLoss.apply(states.to(table.dtype), table, chunk_loss)
    return loss


def catalogue_cross_entropy(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(states @ table.T)[target]: states [n, hidden], table [I, hidden], targets [n] -> a scalar."""

    def chunk_loss(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        wanted = targets[rows, None]
        highest = scores.amax(dim=1, keepdim=True)
        loss = (highest - scores.gather(1, wanted)).sum()
        shares = scores.sub_(highest).exp_()
        total = shares.sum(dim=1, keepdim=True)
        gradient = shares.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
        return loss + total.log().sum(), gradient

    return catalogue_loss(states, table, chunk_loss)


class _CatalogueLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, chunk_loss: ChunkLoss) -> Tensor:  # noqa: ANN401
        states_grad, table_grad = torch.empty_like(states), torch.zeros_like(table)
        loss = states.new_zeros(())
        step = max(1, CHUNK // states[0].shape[:-1].numel()) if len(states) else CHUNK
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), step):
                rows = slice(start, start + step)
                value, gradient = chunk_loss(states[rows] @ table.T, rows)
                loss += value
                states_grad[rows] = gradient @ table
                table_grad.addmm_(gradient.flatten(0, -2).T, states[rows].flatten(0, -2))
        ctx.save_for_backward(states_grad, table_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        states_grad, table_grad = ctx.saved_tensors
        return grads[0] * states_grad, grads[0] * table_grad, None
