"""SAPO, Step-Aligned: each step of the completion gets the credit of its own match."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import OBJECTIVES, ClipOptions, Credit, GroupOptions, PolicyObjective, Reduction, Setting
from genrl.objectives.credit import GroupNorm, Guard, Normalize, component, missing_reward, spread
from genrl.objectives.terms import ClippedRatio, FixedBounds, SequenceMean, chosen_tokens, penalties, reduction
from genrl.ops import segment_gather, segment_sum
from genrl.options import option

Match = Literal["per_level", "prefix", "nested"]
SAPO_NORM = GroupNorm(guard="clamp")


def matched(steps: Tensor, match: Match) -> Tensor:
    """Turn step rewards [B, S], positive where the level matches, into the match reward of SAPO [B, S].

    "per_level": as they are (paper and code); "prefix": only where all levels before match too; "nested": prefix, with
    values that add up to 1/2^(S-k) after k levels (1/4, 1/2, 1 for three levels, SIDReasoner).

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
    r_ik = m_ik + f_ik: the match reward, and what `Rewards.step_shaping` holds (`format`). Tokens in no step get 0.
    """

    norm: GroupNorm = SAPO_NORM
    match: Match = "per_level"
    scope: Literal["think_and_sid", "think_only"] = "think_and_sid"
    """With "think_only", tokens that decide an item get advantage 0 (the authors' code)."""
    per_step: bool = True
    """False sums r_ik over steps and gives one advantage per completion (ablation)."""
    component: str | None = None
    """Outcome reward that every step gets for m_ik (ablation); None: the match rewards of the steps."""

    def missing(self, setting: Setting) -> Iterator[str]:
        if self.component is not None:
            yield from missing_reward(self.component, setting)
        elif not setting.step_rewards:
            yield (
                f"a match per step; none of rewards [{', '.join(setting.rewards)}] gives one. "
                f"Add e.g. rewards.level_match.weight=1"
            )
        yield from self.norm.missing(setting)
        if self.scope == "think_only" and setting.thinking is False:
            yield (
                "a layout with thinking; this one has none. Set objective.scope=think_and_sid, or choose layout=blocked"
            )

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        steps, sizes = (self._steps(completions, each) for each in (rewards, rewards.absolute))
        advantages = segment_gather(self.norm(steps, completions.group_size, sizes), completions.step_ids)
        return advantages.masked_fill(completions.item_ids >= 0, 0) if self.scope == "think_only" else advantages

    def _steps(self, completions: Completions, rewards: Rewards) -> Tensor:
        """r_ik, or its sum over steps [B, S] in float64, whose sums of few float32 numbers are exact."""
        steps = self._matches(completions, rewards).double()
        if rewards.step_shaping is not None:
            steps = steps + rewards.step_shaping
        return steps if self.per_step else steps.sum(1, keepdim=True).expand_as(steps)

    def _matches(self, completions: Completions, rewards: Rewards) -> Tensor:
        if self.component is not None:
            return component(rewards, self.component)[:, None].expand(-1, completions.num_steps)
        if rewards.steps is None:
            raise ConfigError(
                f"step advantages need a match per step; none of rewards [{', '.join(rewards.components)}] gives one. "
                f"Add e.g. rewards.level_match.weight=1"
            )
        return matched(rewards.steps, self.match)


@dataclass(frozen=True)
class ShapedOutcome(Credit):
    """One advantage per completion for an outcome reward and the mean over steps of `Rewards.step_shaping` (ablation).

    The mean, because the other rows of the ablation add f_ik to each step: sum_k (R_i + f_ik) is K times R_i + mean_k
    f_ik, so `format` weighs as much against a match in all of them. Without such a reward it is `OutcomeCredit`.
    """

    norm: GroupNorm
    component: str

    def missing(self, setting: Setting) -> Iterator[str]:
        yield from self.norm.missing(setting)
        yield from missing_reward(self.component, setting)

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        values, sizes = (self._shaped(each) for each in (rewards, rewards.absolute))
        return spread(self.norm(values, completions.group_size, sizes), completions)

    def _shaped(self, rewards: Rewards) -> Tensor:
        values = component(rewards, self.component).double()
        return values if rewards.step_shaping is None else values + rewards.step_shaping.double().mean(1)


@dataclass(frozen=True)
class StepMean(Reduction):
    """Completions weigh the same, their steps share, the tokens of a step share: w = 1 / (B * K_i * n_ik).

    The step-length normalisation of SAPO (arXiv:2605.17648): the factor 1/|y_i^(k)| is the paper's, the factor 1/K is
    our reading. K_i counts the steps of the row that have chosen tokens (all K where the completion is whole), so that
    a completion whose first code is forced does not weigh less. Tokens in no step weigh nothing.
    """

    def __call__(self, completions: Completions) -> Tensor:
        chosen = chosen_tokens(completions)
        lengths = segment_sum(chosen, completions.step_ids, completions.num_steps)
        steps = (lengths > 0).sum(1, keepdim=True).clamp(min=1)
        return segment_gather(1 / (lengths.clamp(min=1) * steps), completions.step_ids) * chosen


@dataclass
class SAPOConfig(ClipOptions, GroupOptions):
    """Options of `sapo`."""

    dual_clip: float | None = option(None, gt=1)
    """Largest ratio that a negative advantage feels (the authors' code: 3.0); null: unbounded."""
    match: Match = "per_level"
    """Step reward per level (paper and code), only while all levels before match, or nested (1/4, 1/2, 1)."""
    scope: Literal["think_and_sid", "think_only"] = "think_and_sid"
    """What a step's advantage reaches: thinking and SID token (paper), or thinking alone (the authors' code)."""
    ablation: Literal["none", "no_step_advantage", "no_match_reward", "outcome"] = "none"
    """Rows of the paper's ablation: one advantage for the summed match; `exact_reward` on every step; both, which is
    outcome GRPO, whatever match, scope and reduction say. All rows get the same `format` reward."""
    exact_reward: str = "exact_match"
    """Name of the outcome reward that `no_match_reward` and `outcome` use."""
    normalize: Normalize = "std"
    """Divide centred step rewards by their deviation, only centre them, or take them raw."""
    guard: Guard = "clamp"
    """Keep the deviation above eps (the authors' code), or add eps to it; one advantage per completion always adds."""
    singleton: Literal["zero", "raw"] = "zero"
    """Groups of one: refused, or advantage = raw step reward (the authors' code)."""
    reduction: Literal["step", "sequence", "token"] = "step"
    """Mean over completions, steps and tokens of the step (paper); or over tokens of completions; or over all
    tokens."""
    kl_coef: float = 0.001
    """Weight of the KL penalty to the reference policy; 0 loads no reference."""


@OBJECTIVES.register(
    "sapo",
    config=SAPOConfig,
    aliases=("step-aligned",),
    title="Step-Aligned Policy Optimization",
    paper="arXiv:2605.17648",
)
def sapo(config: SAPOConfig) -> PolicyObjective:
    """Step-Aligned Policy Optimization (arXiv:2605.17648).

    Not Soft Adaptive Policy Optimization (arXiv:2511.20347), which TRL and verl call sapo.

    loss = -1/B sum_i 1/K sum_k 1/n_ik sum_{t in step k} [ min(r A_ik, clip(r, 1-e, 1+e) A_ik) - kl_coef * k3 ],
    A_ik = (r_ik - mean_g r_gk) / max(std_g r_gk, eps), r_ik = m_ik + f_ik,
    m_ik = 1 if level k of the SID matches, f_ik = weight of `format` if block k ended as it should (0 without it).

    The paper fixes the step advantage and 1/n_ik; the factor 1/K, clip and KL are our reading. The authors' code,
    older than the paper, is `scope=think_only reduction=token dual_clip=3`; there f_ik is logged but has no gradient.
    The ablations change one thing each: `no_step_advantage` compares sum_k r_ik of completions; with R_i the exact
    reward, `no_match_reward` has r_ik = R_i + f_ik and `outcome` compares R_i + mean_k f_ik.
    """
    per_step = config.ablation not in ("no_step_advantage", "outcome")
    guard = config.guard if per_step else "add"
    norm = GroupNorm(config.normalize, config.ddof, config.eps, guard, config.singleton)
    named = config.exact_reward if config.ablation == "no_match_reward" else None
    credit: Credit = StepCredit(norm, config.match, config.scope, per_step, named)
    weights: Reduction = StepMean() if config.reduction == "step" else reduction(config.reduction)
    if config.ablation == "outcome":
        credit, weights = ShapedOutcome(norm, config.exact_reward), SequenceMean()
    return PolicyObjective(
        credit=credit,
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high), config.dual_clip),
        reduction=weights,
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
