"""Relatives of GRPO: the same pieces with other options."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Scores
from genrl.objectives.base import OBJECTIVES, ClipOptions, GroupOptions, PolicyObjective, Reduction, Stats, Surrogate
from genrl.objectives.credit import DecoupledCredit, GroupNorm, OutcomeCredit, Per
from genrl.objectives.groups import OutcomeOptions, outcome_credit
from genrl.objectives.terms import (
    ClippedRatio,
    FixedBounds,
    Level,
    TokenMean,
    chosen_tokens,
    clipped_surrogate,
    log_ratios,
    penalties,
    pooled,
    ratio_stats,
    reduction,
)
from genrl.options import option


@dataclass(frozen=True)
class ConstantLength(Reduction):
    """Sum over tokens divided by a constant length in tokens: w = mask / (B * length) (Dr.GRPO, arXiv:2503.20783).

    B counts all completions. verl's `seq-mean-token-sum-norm` does not divide by B; this is TRL's form.
    """

    length: float

    def __call__(self, completions: Completions) -> Tensor:
        return chosen_tokens(completions) / self.length

    def mass(self, weights: Tensor) -> Tensor:
        return weights.new_ones(weights.shape[0])


@dataclass
class DrGRPOConfig(ClipOptions):
    """Options of `dr_grpo`."""

    length: float = option(4.0, gt=0)
    """Tokens that a completion's sum is divided by; the paper takes the longest completion allowed (SIDs: 3-4)."""


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
class DAPOConfig(ClipOptions, OutcomeOptions):
    """Options of `dapo`."""

    clip_high: float = 0.28
    """The ratio is kept below 1 + clip_high."""
    dynamic_sampling: int = option(4, ge=0)
    """Generation batches drawn at most to replace prompts whose completions all earn the same; 0: none (verl's recipe:
    10)."""
    denominator: Literal["kept", "all"] = "kept"
    """Count only the tokens of groups with an advantage, or all."""


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
        credit=outcome_credit(config),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
        dynamic_sampling=config.dynamic_sampling,
        drop_dead=config.denominator,
    )


@dataclass
class GSPOConfig(ClipOptions, OutcomeOptions):
    """Options of `gspo`."""

    clip_low: float = 3e-4
    """The ratio is kept above 1 - clip_low. The paper's value is for long texts; SIDs want 0.05 to 0.2."""
    clip_high: float = 4e-4
    """The ratio is kept below 1 + clip_high; see clip_low."""
    level: Literal["sequence", "sequence_token"] = "sequence"
    """One ratio per completion, or GSPO-token: its value with each token's own gradient."""


@OBJECTIVES.register("gspo", config=GSPOConfig, title="Group Sequence Policy Optimization", paper="arXiv:2507.18071")
def gspo(config: GSPOConfig) -> PolicyObjective:
    """GSPO (arXiv:2507.18071, equations 5 and 7): clip the geometric mean of token ratios, exp(mean_t log r_it)."""
    return PolicyObjective(
        credit=outcome_credit(config),
        surrogate=ClippedRatio(config.level, FixedBounds(config.clip_low, config.clip_high)),
        reduction=reduction("sequence"),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )


@dataclass
class GDPOConfig(ClipOptions, GroupOptions):
    """Options of `gdpo`."""

    whiten: Literal["sequence", "token", "none"] = "sequence"
    """Scale the summed advantages over the batch: completions count once (paper), by tokens (verl's code), or not."""
    eps: float = 1e-4
    """Added to deviations, in the group and over the batch."""
    reduction: Literal["sequence", "token"] = "sequence"
    """Mean over completions of means over tokens, or mean over all tokens."""
    advantage: Per = "completion"
    """One advantage for all tokens of a completion, or one for each of its items, from rewards per item."""
    kl_coef: float = 0.001
    """Weight of the KL penalty to the reference policy, as in grpo; 0 loads no reference."""


@OBJECTIVES.register(
    "gdpo",
    config=GDPOConfig,
    title="Group reward-Decoupled normalization Policy Optimization",
    paper="arXiv:2601.05242",
)
def gdpo(config: GDPOConfig) -> PolicyObjective:
    """GDPO (arXiv:2601.05242, equations 4-6): GRPO with each reward normalised in its group before the sum."""
    return PolicyObjective(
        credit=DecoupledCredit(GroupNorm(ddof=config.ddof, eps=config.eps), config.whiten, per=config.advantage),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )


@dataclass(frozen=True)
class CappedRatio(Surrogate):
    """Clipped surrogate on a ratio that is first capped from above without losing its gradient: ECPO.

    OneRec technical report (arXiv:2506.13695):
    pi'_old = max(sg(pi) / (1 + eps + delta), pi_old), so r' = pi / pi'_old = min(r, 1 + eps + delta) in value, with
    coefficient r'. It differs from the plain clip only where A < 0 and r > 1 + eps + delta.
    """

    level: Level
    """Of tokens ("token"), or of the whole completion ("product")."""
    clip: float
    """eps, on both sides."""
    delta: float
    """Room between the clip and the cap."""

    def capped(self, scores: Scores, batch: Experience) -> Tensor:
        """Ratio r' with gradient [B, T]."""
        logs = pooled(log_ratios(scores, batch.completions), batch.completions, self.level)
        excess = (logs.detach() - math.log1p(self.clip + self.delta)).clamp(min=0)
        return torch.exp(logs - excess).expand_as(batch.advantages)

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        ratios = self.capped(scores, batch)
        values, flat = clipped_surrogate(ratios, batch.advantages, 1.0 - self.clip, 1.0 + self.clip)
        return values, ratio_stats(ratios, batch.completions, flat)


@dataclass
class ECPOConfig(OutcomeOptions):
    """Options of `ecpo`."""

    clip: float = option(0.2, ge=0, le=1)
    """The ratio is kept in 1 +- clip; the report does not give it."""
    delta: float = option(0.1, ge=0)
    """The ratio is capped at 1 + clip + delta before it is clipped."""
    level: Literal["token", "sequence"] = "token"
    """Ratio per token, or of the whole completion (product of its tokens)."""


@OBJECTIVES.register("ecpo", config=ECPOConfig, title="Early-Clipped GRPO (OneRec)", paper="arXiv:2506.13695")
def ecpo(config: ECPOConfig) -> PolicyObjective:
    """ECPO (OneRec technical report, arXiv:2506.13695): the coefficient of bad tokens is at most 1 + clip + delta."""
    return PolicyObjective(
        credit=outcome_credit(config),
        surrogate=CappedRatio("token" if config.level == "token" else "product", config.clip, config.delta),
        reduction=reduction("sequence"),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )


@dataclass(frozen=True)
class DetachedRatio(Surrogate):
    """Log-likelihood weighted by advantage and a clipped, detached ratio: sg(clip(r, low, high)) A log pi (CISPO).

    No token ever loses its gradient.
    """

    low: float
    high: float

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        ratios = log_ratios(scores, batch.completions).detach().exp()
        logps = scores.logps.masked_fill(~batch.completions.chosen, 0)
        values = ratios.clamp(self.low, self.high) * batch.advantages * logps
        return values, ratio_stats(ratios, batch.completions, (ratios < self.low) | (ratios > self.high))


@dataclass
class CISPOConfig(OutcomeOptions):
    """Options of `cispo`."""

    weight_min: float = option(0.0, ge=0)
    """Smallest weight of a token (verl clips on both sides)."""
    weight_max: float = option(5.0, gt=0)
    """Largest weight of a token (ScaleRL and TRL: 5)."""


@OBJECTIVES.register(
    "cispo", config=CISPOConfig, title="Clipped Importance Sampling Policy Optimization", paper="arXiv:2506.13585"
)
def cispo(config: CISPOConfig) -> PolicyObjective:
    """CISPO (MiniMax-M1, arXiv:2506.13585): U = sg(clip(r)) A log pi, so clipping limits weights, never gradients."""
    return PolicyObjective(
        credit=outcome_credit(config),
        surrogate=DetachedRatio(config.weight_min, config.weight_max),
        reduction=TokenMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )
