"""Relatives of GRPO: the same pieces with other options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrl.objectives.base import OBJECTIVES
from genrl.objectives.credit import GroupNorm, OutcomeCredit
from genrl.objectives.decoupled import DecoupledCredit
from genrl.objectives.penalty import penalties
from genrl.objectives.policy import PolicyObjective
from genrl.objectives.reduction import ConstantLength, TokenMean, reduction
from genrl.objectives.surrogate import CappedRatio, ClippedRatio, DetachedRatio, FixedBounds


@dataclass
class DrGRPOConfig:
    """Options of `dr_grpo`."""

    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high."""
    length: float = 4.0
    """Tokens that a completion's sum is divided by; the paper takes the longest completion allowed (SIDs: 3-4)."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (paper: none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register("dr_grpo", config=DrGRPOConfig, title="GRPO Done Right", paper="arXiv:2503.20783")
def dr_grpo(config: DrGRPOConfig) -> PolicyObjective:
    """Dr.GRPO (arXiv:2503.20783): A_i = R_i - mean_g, and w = mask / (B * length): no bias by difficulty or length."""
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(normalize="mean")),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=ConstantLength(config.length),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


@dataclass
class DAPOConfig:
    """Options of `dapo`."""

    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio is kept below 1 + clip_high."""
    dynamic_sampling: int = 4
    """Generation batches drawn at most to replace prompts whose completions all earn the same; 0: none (verl's recipe:
    10)."""
    denominator: Literal["kept", "all"] = "kept"
    """Count only the tokens of groups with an advantage, or all."""
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (paper: none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register(
    "dapo",
    config=DAPOConfig,
    title="Decoupled Clip and Dynamic Sampling Policy Optimization",
    paper="arXiv:2503.14476",
)
def dapo(config: DAPOConfig) -> PolicyObjective:
    """DAPO (arXiv:2503.14476): higher upper clip, mean over all tokens, groups without variance replaced.

    The trainer redraws dead prompts up to `dynamic_sampling` times; what is dead after that gets no weight. Its soft
    punishment of overlong completions is a reward, not part of the objective.
    """
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps)),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        dynamic_sampling=config.dynamic_sampling,
        drop_dead=config.denominator,
    )


@dataclass
class GSPOConfig:
    """Options of `gspo`."""

    clip_low: float = 3e-4
    """The ratio is kept above 1 - clip_low. The paper's value is for long texts; SIDs want 0.05 to 0.2."""
    clip_high: float = 4e-4
    """The ratio is kept below 1 + clip_high; see clip_low."""
    level: Literal["sequence", "sequence_token"] = "sequence"
    """One ratio per completion, or GSPO-token: its value with each token's own gradient."""
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (paper: none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register("gspo", config=GSPOConfig, title="Group Sequence Policy Optimization", paper="arXiv:2507.18071")
def gspo(config: GSPOConfig) -> PolicyObjective:
    """GSPO (arXiv:2507.18071, equations 5 and 7): clip the geometric mean of token ratios, exp(mean_t log r_it)."""
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps)),
        surrogate=ClippedRatio(config.level, FixedBounds(config.clip_low, config.clip_high)),
        reduction=reduction("sequence"),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


@dataclass
class GDPOConfig:
    """Options of `gdpo`."""

    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high."""
    whiten: Literal["sequence", "token", "none"] = "sequence"
    """Scale the summed advantages over the batch: completions count once (paper), by tokens (verl's code), or not."""
    ddof: int = 1
    """Deviations divide by count - ddof."""
    eps: float = 1e-4
    """Added to deviations, in the group and over the batch."""
    reduction: Literal["sequence", "token"] = "sequence"
    """Mean over completions of means over tokens, or mean over all tokens."""
    kl_coef: float = 0.001
    """Weight of the KL penalty to the reference policy, as in grpo; 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register(
    "gdpo",
    config=GDPOConfig,
    title="Group reward-Decoupled normalization Policy Optimization",
    paper="arXiv:2601.05242",
)
def gdpo(config: GDPOConfig) -> PolicyObjective:
    """GDPO (arXiv:2601.05242, equations 4-6): GRPO with each reward normalised in its group before the sum."""
    return PolicyObjective(
        credit=DecoupledCredit(GroupNorm(ddof=config.ddof, eps=config.eps), config.whiten),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


@dataclass
class ECPOConfig:
    """Options of `ecpo`."""

    clip: float = 0.2
    """The ratio is kept in 1 +- clip; the report does not give it."""
    delta: float = 0.1
    """The ratio is capped at 1 + clip + delta before it is clipped."""
    level: Literal["token", "sequence"] = "token"
    """Ratio per token, or of the whole completion (product of its tokens)."""
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (the report removes it); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register("ecpo", config=ECPOConfig, title="Early-Clipped GRPO (OneRec)", paper="arXiv:2506.13695")
def ecpo(config: ECPOConfig) -> PolicyObjective:
    """ECPO (OneRec technical report, arXiv:2506.13695): the coefficient of bad tokens is at most 1 + clip + delta."""
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps)),
        surrogate=CappedRatio("token" if config.level == "token" else "product", config.clip, config.delta),
        reduction=reduction("sequence"),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


@dataclass
class CISPOConfig:
    """Options of `cispo`."""

    weight_min: float = 0.0
    """Smallest weight of a token (verl clips on both sides)."""
    weight_max: float = 5.0
    """Largest weight of a token (ScaleRL and TRL: 5)."""
    ddof: int = 1
    """Deviation divides by group size - ddof."""
    eps: float = 1e-6
    """Added to the deviation."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy (paper: none); 0 loads no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""


@OBJECTIVES.register(
    "cispo", config=CISPOConfig, title="Clipped Importance Sampling Policy Optimization", paper="arXiv:2506.13585"
)
def cispo(config: CISPOConfig) -> PolicyObjective:
    """CISPO (MiniMax-M1, arXiv:2506.13585): U = sg(clip(r)) A log pi, so clipping limits weights, never gradients."""
    return PolicyObjective(
        credit=OutcomeCredit(GroupNorm(ddof=config.ddof, eps=config.eps)),
        surrogate=DetachedRatio(config.weight_min, config.weight_max),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
