"""Reductions: which tokens weigh how much. Each is a weight per token; the division happens once, in `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions
from genrl.errors import ConfigError
from genrl.objectives.base import Reduction
from genrl.ops import segment_gather, segment_sum


def _chosen(rollout: Completions) -> Tensor:
    return rollout.chosen.to(rollout.logps.dtype)


@dataclass(frozen=True)
class TokenMean(Reduction):
    """Every chosen token weighs the same: w = mask / sum of mask over the batch (DAPO; "token_mean")."""

    def __call__(self, rollout: Completions) -> Tensor:
        """Return the mask as numbers [B, T]."""
        return _chosen(rollout)


@dataclass(frozen=True)
class SequenceMean(Reduction):
    """Every completion weighs the same, and its tokens share: w = mask_i / (B * |y_i|) (GRPO; "seq_mean_token_mean").

    B counts the completions with at least one chosen token. A surrogate with one value per completion (GSPO, SAGE)
    becomes the plain mean over completions.
    """

    def __call__(self, rollout: Completions) -> Tensor:
        """Return 1 / number of chosen tokens of the row, on chosen tokens [B, T]."""
        chosen = _chosen(rollout)
        return chosen / chosen.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class StepMean(Reduction):
    """Completions weigh the same, their steps share, the tokens of a step share: w = 1 / (B * K_i * n_ik).

    The step-length normalisation of SAPO (arXiv:2605.17648): the factor 1/|y_i^(k)| is the paper's, the factor 1/K is
    our reading. K_i counts the steps of the row that have chosen tokens (all K where the completion is whole), so that
    a completion whose first code is forced does not weigh less. Tokens in no step weigh nothing.
    """

    def __call__(self, rollout: Completions) -> Tensor:
        """Return 1 / (steps of the row * tokens of the step), on chosen tokens in steps [B, T]."""
        chosen = _chosen(rollout)
        lengths = segment_sum(chosen, rollout.step_ids, rollout.num_steps)
        steps = (lengths > 0).sum(1, keepdim=True).clamp(min=1)
        return segment_gather(1 / (lengths.clamp(min=1) * steps), rollout.step_ids) * chosen


@dataclass(frozen=True)
class ConstantLength(Reduction):
    """Sum over tokens divided by a constant: w = mask / (B * length) (Dr.GRPO, arXiv:2503.20783).

    B counts all completions. verl's `seq-mean-token-sum-norm` does not divide by B; this is TRL's form.

    Args:
        length: the constant, in tokens.
    """

    length: float

    def __call__(self, rollout: Completions) -> Tensor:
        """Return 1 / length on chosen tokens [B, T]."""
        return _chosen(rollout) / self.length

    def mass(self, weights: Tensor) -> Tensor:
        """Every row counts as one, however short [B]."""
        return torch.ones_like(weights[:, 0]) if weights.shape[1] else weights.new_ones(weights.shape[0])


ReductionName = Literal["token", "sequence", "step"]


def reduction(name: str) -> Reduction:
    """Return the reduction of that name, as options spell it.

    Raises:
        ConfigError: for another name.
    """
    known: dict[str, Reduction] = {"token": TokenMean(), "sequence": SequenceMean(), "step": StepMean()}
    if name not in known:
        raise ConfigError(f"reduction {name!r} is unknown. Known: {', '.join(known)}.")
    return known[name]
