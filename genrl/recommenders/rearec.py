"""ReaRec (Tang et al., 2025): SASRec that goes on for a few latent steps before it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from genrl.options import option
from genrl.policy.catalogue_loss import catalogue_cross_entropy, catalogue_loss
from genrl.policy.encoder import length_groups
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders.base import BASELINES, Problem
from genrl.recommenders.sasrec import EncoderBaseline, EncoderConfig


@dataclass(frozen=True)
class ReaRecConfig(EncoderConfig):
    """Options of ReaRec."""

    batch: int = 1024
    """Targets per optimiser step."""
    method: Literal["ensemble", "progressive"] = "ensemble"
    """Ensemble Reasoning Learning (the mean of all states predicts) or Progressive Reasoning Learning (the last)."""
    steps: int = option(2, ge=0, says="cannot be negative; 0 is SASRec")
    """K, latent reasoning steps; 0 is SASRec."""
    temperature: float = option(0.07, gt=0)
    """Scores are divided by it."""
    kl_weight: float = 0.05
    """ensemble: weight of the divergence between the predictions of the states."""
    annealing: float = 5.0
    """progressive: each earlier state predicts at a temperature this many times higher."""
    progressive_weight: float = 1.0
    """progressive: weight of the predictions before the last."""
    noise: float = 0.01
    """progressive: standard deviation of the noise in the second view of the steps."""
    contrast_weight: float = 1.0
    """progressive: weight of the contrast between the two views."""


@BASELINES.register("rearec", config=ReaRecConfig, title="ReaRec", paper="arXiv:2503.22675")
class ReaRec(EncoderBaseline):
    """Latent reasoning before the prediction.

    The state of the latest item is r_0; step k = 1..K reads r_{k-1} plus an embedding of the step as a further place,
    behind the items and the steps before it, and gives r_k. With p_k = softmax(r_k · E / τ) over the catalogue and the
    target v, the loss of a target is

    ensemble: CE(mean_k r_k) - kl_weight · mean_{i≠j} KL(p_j || p_i), the gradient not passing through p_i;
    progressive: CE(r_K) + progressive_weight · mean_{k<K} CE_k + contrast_weight · mean_{k>0} C_k, where CE_k has the
    temperature τ · annealing^(K-k), and C_k = -log softmax_b(r'_k · r_k^b / τ)[own row], with r'_k the state of a
    second view whose inputs r_{k-1} + step carry normal noise, against the clean states of all rows b of the batch.

    CE(r) = -log softmax(r · E / τ)[v]. The mean of all K + 1 states ranks (ensemble), or the last (progressive).

    These are the losses of the authors' released code. The paper's text sums the ensemble's cross-entropy over the
    states instead of taking that of their mean. Other differences: the encoder is the pre-norm one of `sasrec` with
    positions counted from the end (theirs is post-norm and counts from the first item); both views share what was read
    of the items (theirs reads them twice, with different dropout); the noise is there from the first step (theirs
    starts after two passes).
    """

    per: ClassVar[Literal["target", "user"]] = "target"
    config: ReaRecConfig

    def __init__(self, config: ReaRecConfig, *, problem: Problem) -> None:
        super().__init__(config, problem=problem)
        self.steps = nn.Parameter(torch.randn(config.steps, config.hidden) * 0.02)

    @property
    def temperature(self) -> float:
        return self.config.temperature

    def loss(self, batch: SequenceBatch) -> Tensor:
        views = self.config.method == "progressive" and self.config.steps > 0
        order, thoughts = [], []
        for rows, length in length_groups(batch.items):
            order.append(rows)
            thoughts.append(self.reason(batch.items[rows, -length:-1], self.config.noise if views else None))
        targets = batch.items[torch.cat(order), -1]
        clean = torch.cat([states[: len(rows)] for rows, states in zip(order, thoughts, strict=True)])
        if self.config.method == "ensemble":
            return self._ensemble(clean, targets)
        noisy = torch.cat([states[len(rows) :] for rows, states in zip(order, thoughts, strict=True)])
        return self._progressive(clean, noisy, targets)

    def last_states(self, items: Tensor) -> Tensor:
        states = self.reason(items)
        return states.mean(dim=1) if self.config.method == "ensemble" else states[:, -1]

    def reason(self, items: Tensor, noise: float | None = None) -> Tensor:
        """States of the latest item and of each step: items [B, L], right-aligned, -1 pads -> [B, K + 1, hidden].

        With `noise`, the standard deviation of a second view of the steps, [2B, K + 1, hidden], its rows last.
        """
        states, memory = self.encoder(items)
        seen = items >= 0
        thoughts = [states[:, -1:]]
        if noise is not None:
            memory = [(keys.repeat(2, 1, 1, 1), values.repeat(2, 1, 1, 1)) for keys, values in memory]
            seen, thoughts = seen.repeat(2, 1), [thoughts[0].repeat(2, 1, 1)]
        for step in self.steps:
            inputs = thoughts[-1][: len(items)] + step
            if noise is not None:
                inputs = torch.cat([inputs, inputs + noise * torch.randn_like(inputs)])
            seen = pad(seen, (0, 1), value=True)
            states, memory = self.encoder.read(inputs, seen[:, None, None], memory)
            thoughts.append(states)
        return torch.cat(thoughts, dim=1)

    def _cross_entropy(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return catalogue_cross_entropy(states / temperature, self.encoder.table, targets)

    def _ensemble(self, states: Tensor, targets: Tensor) -> Tensor:
        loss = self._cross_entropy(states.mean(dim=1), targets, self.config.temperature)
        if not self.config.kl_weight or not self.config.steps:
            return loss
        return loss - self.config.kl_weight * divergence(states / self.config.temperature, self.encoder.table)

    def _progressive(self, clean: Tensor, noisy: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        loss = self._cross_entropy(clean[:, -1], targets, config.temperature)
        for step in range(config.steps):
            temperature = config.temperature * config.annealing ** (config.steps - step)
            earlier = self._cross_entropy(clean[:, step], targets, temperature)
            alike = noisy[:, step + 1] @ clean[:, step + 1].T / config.temperature
            contrast = cross_entropy(alike, torch.arange(len(alike), device=alike.device), reduction="sum")
            loss = loss + (config.progressive_weight * earlier + config.contrast_weight * contrast) / config.steps
        return loss


def divergence(states: Tensor, table: Tensor) -> Tensor:
    """Sum over rows of mean_{i≠j} KL(p_j || p_i), p_k = softmax(states[:, k] · table); p_i carries no gradient.

    States [n, T, hidden], T of at least 2, and table [I, hidden] -> a scalar.
    """
    count = states.shape[1]

    def chunk_loss(scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(scores, dim=-1)
        shares = logs.exp()
        apart = count * logs - logs.sum(dim=1, keepdim=True)  # sum over i of log p_j - log p_i
        sums = (shares * apart).sum(dim=-1, keepdim=True)
        scale = 1 / (count * (count - 1))
        return sums.sum() * scale, apart.sub_(sums).mul_(shares).mul_(scale)

    return catalogue_loss(states, table, chunk_loss)
