"""Reductions: which tokens weigh how much. Each is a weight per token; the division happens once, in `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions
from genrl.errors import ConfigError
from genrl.objectives.base import Reduction


def chosen_tokens(completions: Completions) -> Tensor:
    """[B, T]: 1 on tokens that the policy chose, with the dtype of its log-probabilities."""
    return completions.chosen.to(completions.logps.dtype)


@dataclass(frozen=True)
class TokenMean(Reduction):
    """Every chosen token weighs the same: w = mask / sum of mask over the batch (DAPO; "token_mean")."""

    def __call__(self, completions: Completions) -> Tensor:
        """Return the mask as numbers [B, T]."""
        return chosen_tokens(completions)


@dataclass(frozen=True)
class SequenceMean(Reduction):
    """Every completion weighs the same, and its tokens share: w = mask_i / (B * |y_i|) (GRPO; "seq_mean_token_mean").

    B counts the completions with at least one chosen token. A surrogate with one value per completion (GSPO, SAGE)
    becomes the plain mean over completions.
    """

    def __call__(self, completions: Completions) -> Tensor:
        """Return 1 / number of chosen tokens of the row, on chosen tokens [B, T]."""
        chosen = chosen_tokens(completions)
        return chosen / chosen.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class ConstantLength(Reduction):
    """Sum over tokens divided by a constant: w = mask / (B * length) (Dr.GRPO, arXiv:2503.20783).

    B counts all completions. verl's `seq-mean-token-sum-norm` does not divide by B; this is TRL's form.

    Args:
        length: the constant, in tokens.
    """

    length: float

    def __call__(self, completions: Completions) -> Tensor:
        """Return 1 / length on chosen tokens [B, T]."""
        return chosen_tokens(completions) / self.length

    def mass(self, weights: Tensor) -> Tensor:
        """Every row counts as one, however short [B]."""
        return torch.ones_like(weights[:, 0]) if weights.shape[1] else weights.new_ones(weights.shape[0])


ReductionName = Literal["token", "sequence"]


def reduction(name: str) -> Reduction:
    """Return the reduction of that name, as options spell it.

    Raises:
        ConfigError: for another name.
    """
    known: dict[str, Reduction] = {"token": TokenMean(), "sequence": SequenceMean()}
    if name not in known:
        raise ConfigError(f"reduction {name!r} is unknown. Known: {', '.join(known)}.")
    return known[name]
