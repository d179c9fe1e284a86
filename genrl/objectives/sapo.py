"""SAPO, Step-Aligned: each step of the completion gets the credit of its own match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES, Credit, Reduction
from genrl.objectives.credit import GroupNorm, Guard, Normalize
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import SequenceMean, reduction
from genrl.objectives.step_credit import Match, ShapedOutcome, StepCredit
from genrl.objectives.surrogate import ClippedRatio, FixedBounds


@dataclass
class SAPOConfig:
    """Options of `sapo`."""

    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high."""
    dual_clip: float | None = None
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
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Guard of the deviation."""
    guard: Guard = "clamp"
    """Keep the deviation above eps (the authors' code), or add eps to it; one advantage per completion always adds."""
    singleton: Literal["zero", "raw"] = "zero"
    """Groups of one: refused, or advantage = raw step reward (the authors' code)."""
    reduction: Literal["step", "sequence", "token"] = "step"
    """Mean over completions, steps and tokens of the step (paper); or over tokens of completions; or over all
    tokens."""
    kl_coef: float = 0.001
    """Weight of the KL penalty to the reference policy; 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


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

    The ablations change one thing each, with R_i the exact reward: `no_step_advantage` compares sum_k (m_ik + f_ik) of
    completions; `no_match_reward` has r_ik = R_i + f_ik; `outcome` compares R_i + mean_k f_ik, that is sum_k (R_i +
    f_ik) in the unit of R_i. So a format reward weighs as much against a match in every row.
    """
    per_step = config.ablation not in ("no_step_advantage", "outcome")
    guard = config.guard if per_step else "add"
    norm = GroupNorm(config.normalize, config.ddof, config.eps, guard, config.singleton)
    named = config.exact_reward if config.ablation == "no_match_reward" else None
    credit: Credit = StepCredit(norm, config.match, config.scope, per_step, named)
    weights: Reduction = reduction(config.reduction)
    if config.ablation == "outcome":
        credit, weights = ShapedOutcome(norm, config.exact_reward), SequenceMean()
    return PolicyObjective(
        credit=credit,
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high), config.dual_clip),
        reduction=weights,
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
