"""Credit step by step: SAPO's advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.errors import ConfigError
from genrl.objectives.base import Credit, Stats
from genrl.objectives.credit import GroupNorm, component
from genrl.ops import masked_mean, segment_gather
from genrl.types import Experience, RewardBatch, RolloutBatch

Match = Literal["per_level", "prefix", "nested"]
SAPO_NORM = GroupNorm(guard="clamp")


def matched(steps: Tensor, match: Match) -> Tensor:
    """Turn per-level step rewards into the match reward of SAPO.

    Args:
        steps: step rewards [B, S]; positive where the level matches.
        match: "per_level": as they are (paper and code); "prefix": only where all levels before match too; "nested":
            prefix, with values that add up to 1/2^(S-k) after k levels (1/4, 1/2, 1 for three levels, SIDReasoner).

    Returns:
        Step rewards [B, S].

    Example:
        >>> matched(torch.tensor([[1.0, 0.0, 1.0]]), "prefix")
        tensor([[1., 0., 0.]])
        >>> matched(torch.tensor([[1.0, 1.0, 1.0]]), "nested")
        tensor([[0.2500, 0.2500, 0.5000]])
    """
    if match == "per_level":
        return steps
    unbroken = (steps > 0).to(steps.dtype).cumprod(1)
    prefix = steps * unbroken
    if match == "prefix":
        return prefix
    reached = 0.5 ** torch.arange(steps.shape[1] - 1, -1, -1, dtype=steps.dtype, device=steps.device)
    return prefix * torch.diff(reached, prepend=reached.new_zeros(1))


@dataclass(frozen=True)
class StepCredit(Credit):
    """One advantage per step, normalised within the group step by step (SAPO, arXiv:2605.17648).

    A_ik = (m_ik - mean_g m_gk) / max(std_g m_gk, eps), given to the tokens of step k: think block k and SID token k.

    Args:
        norm: how completions are compared at one step; SAPO's code clamps the deviation.
        match: per-level, prefix or nested match reward.
        scope: "think_and_sid" (paper), or "think_only": tokens that decide an item get advantage 0 (the authors' code).
        per_step: False sums the match reward over steps and gives one advantage per completion (ablation).
        component: outcome reward copied to every step in place of the match reward (ablation); None: the step rewards.
    """

    norm: GroupNorm = SAPO_NORM
    match: Match = "per_level"
    scope: Literal["think_and_sid", "think_only"] = "think_and_sid"
    per_step: bool = True
    component: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Groups and step rewards (or the named component); thinking if only thinking is trained."""
        reward = {"steps"} if self.component is None else {f"component:{self.component}"}
        thinking = {"thinking"} if self.scope == "think_only" else set()
        return self.norm.needs | reward | thinking

    def __call__(self, rollout: RolloutBatch, rewards: RewardBatch) -> Tensor:
        """Return advantages [B, T]; 0 on tokens in no step.

        Raises:
            ConfigError: if there is no step reward.
        """
        steps = self._steps(rollout, rewards)
        if not self.per_step:
            steps = steps.sum(1, keepdim=True).expand_as(steps)
        advantages = segment_gather(self.norm(steps, rollout.group_size), rollout.step_ids)
        return advantages.masked_fill(rollout.item_mask, 0) if self.scope == "think_only" else advantages

    def _steps(self, rollout: RolloutBatch, rewards: RewardBatch) -> Tensor:
        if self.component is not None:
            return component(rewards, self.component)[:, None].expand(-1, rollout.num_steps)
        if rewards.steps is None:
            raise ConfigError(
                f"step advantages need a step reward; rewards [{', '.join(rewards.components)}] are all outcome "
                f"rewards. Add e.g. rewards.level_match.weight=1"
            )
        return matched(rewards.steps, self.match)

    def stats(self, batch: Experience) -> Stats:
        """Mean size of the advantages, also per step."""
        sizes, rollout = batch.advantages.abs(), batch.rollout
        steps = range(rollout.num_steps)
        told = {f"advantage_abs_step{k}": masked_mean(sizes, rollout.mask & (rollout.step_ids == k)) for k in steps}
        return {**super().stats(batch), **told}
