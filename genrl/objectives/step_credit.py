"""Credit step by step: SAPO's advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import Credit
from genrl.objectives.credit import GroupNorm, component, spread
from genrl.ops import segment_gather

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

    A_ik = (r_ik - mean_g r_gk) / max(std_g r_gk, eps), given to the tokens of step k: think block k and SID token k.
    r_ik = m_ik + f_ik: the match reward, and what `Rewards.shaping` holds (`format`).

    Args:
        norm: how completions are compared at one step; SAPO's code clamps the deviation.
        match: per-level, prefix or nested match reward.
        scope: "think_and_sid" (paper), or "think_only": tokens that decide an item get advantage 0 (the authors' code).
        per_step: False sums r_ik over steps and gives one advantage per completion (ablation).
        component: outcome reward that every step gets for m_ik (ablation); None: the match rewards of the steps.
    """

    norm: GroupNorm = SAPO_NORM
    match: Match = "per_level"
    scope: Literal["think_and_sid", "think_only"] = "think_and_sid"
    per_step: bool = True
    component: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Groups and a match per step (or the named component); thinking if only thinking is trained."""
        reward = {"steps"} if self.component is None else {f"component:{self.component}"}
        thinking = {"thinking"} if self.scope == "think_only" else set()
        return self.norm.needs | reward | thinking

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]; 0 on tokens in no step.

        Raises:
            ConfigError: if no step reward says whether a step matched.
        """
        steps = self._matches(rollout, rewards).double()  # sums are exact: no rounding enlivens a dead group
        if rewards.shaping is not None:
            steps = steps + rewards.shaping
        if not self.per_step:
            steps = steps.sum(1, keepdim=True).expand_as(steps)
        advantages = segment_gather(self.norm(steps, rollout.group_size), rollout.step_ids)
        return advantages.masked_fill(rollout.item_mask, 0) if self.scope == "think_only" else advantages

    def _matches(self, rollout: Completions, rewards: Rewards) -> Tensor:
        if self.component is not None:
            return component(rewards, self.component)[:, None].expand(-1, rollout.num_steps)
        if rewards.steps is None:
            raise ConfigError(
                f"step advantages need a match per step; none of rewards [{', '.join(rewards.components)}] gives one. "
                f"Add e.g. rewards.level_match.weight=1"
            )
        return matched(rewards.steps, self.match)


@dataclass(frozen=True)
class ShapedOutcome(Credit):
    """One advantage per completion for an outcome reward and the mean over steps of `Rewards.shaping` (ablation).

    The mean, because the other rows of the ablation add f_ik to each step: sum_k (R_i + f_ik) is K times R_i + mean_k
    f_ik, so `format` weighs as much against a match in all of them. Without such a reward it is `OutcomeCredit`.

    Args:
        norm: how completions of a prompt are compared.
        component: name of the outcome reward.
    """

    norm: GroupNorm
    component: str

    @property
    def needs(self) -> frozenset[str]:
        """Groups and the named component."""
        return self.norm.needs | {f"component:{self.component}"}

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]."""
        values = component(rewards, self.component).double()
        if rewards.shaping is not None:
            values = values + rewards.shaping.double().mean(1)
        return spread(self.norm(values, rollout.group_size), rollout)
