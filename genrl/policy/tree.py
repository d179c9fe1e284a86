"""Attention masks and positions for completions that hang behind one copy of their prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def left_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [P, L] padded on any side -> padded on the left only, without columns that no prompt fills."""
    order = mask.long().argsort(dim=1, stable=True)
    length = int(mask.sum(1).max())
    return tokens.gather(1, order)[:, -length:], mask.gather(1, order)[:, -length:]


def right_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [P, L] -> padded on the right only. Causal attention then needs no mask: no token sees what follows."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


def prompt_positions(mask: Tensor) -> Tensor:
    """Position of each token of left-padded prompts [P, L]; padding gets 0."""
    return (mask.long().cumsum(1) - 1).clamp_(min=0)


def causal_mask(mask: Tensor) -> Tensor:
    """Who attends to whom inside left-padded prompts: [P, L] -> [P, 1, L, L].

    A padding token attends to itself, since a softmax over nothing is not a number.
    """
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    alone = torch.eye(length, dtype=torch.bool, device=mask.device)
    return ((causal & mask[:, None, :]) | alone)[:, None]


def packed_mask(segments: Tensor) -> Tensor:
    """Causal attention inside segments of packed rows: ids [R, L], -1 is padding -> [R, 1, L, L]."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def branch_mask(mask: Tensor, branch: Tensor, place: Tensor) -> Tensor:
    """Mask of prompts [P, L] followed by tokens of several completions in one row.

    A completion token sees the prompt and its own branch up to itself, never another branch.

    Args:
        mask: [P, L].
        branch: [P, N] completion that each token belongs to.
        place: [P, N] its place there.

    Returns:
        [P, 1, L + N, L + N].
    """
    (prompts, length), tail = mask.shape, branch.shape[1]
    own = (branch[:, :, None] == branch[:, None, :]) & (place[:, :, None] >= place[:, None, :])
    full = torch.zeros(prompts, 1, length + tail, length + tail, dtype=torch.bool, device=mask.device)
    full[:, :, :length, :length] = causal_mask(mask)
    full[:, :, length:, :length] = mask[:, None, None, :]
    full[:, :, length:, length:] = own[:, None]
    return full


def ancestry_mask(mask: Tensor, ancestors: list[Tensor], widths: list[int]) -> Tensor:
    """Mask for one more token per beam behind cached prompts and cached earlier beam tokens.

    Args:
        mask: [P, L] of the prompts.
        ancestors: for each earlier level the slot [P, W] that the beam descends from.
        widths: slots cached at each earlier level.

    Returns:
        [P, 1, W, L + sum(widths) + W]: the prompt, the beam's ancestors and itself.
    """
    width = ancestors[0].shape[1]
    blocks = [mask[:, None, :].expand(-1, width, -1)]
    for slots, count in zip(ancestors, widths, strict=True):
        blocks.append(slots[:, :, None] == torch.arange(count, device=mask.device))
    return torch.cat(blocks, dim=2)[:, None]
