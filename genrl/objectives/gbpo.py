"""GBPO: no clip; the gradient of each token is bounded instead."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.errors import ConfigError
from genrl.objectives.base import OBJECTIVES, Credit, PolicyObjective, Stats, Surrogate
from genrl.objectives.credit import ROUNDING, spread
from genrl.objectives.groups import OutcomeOptions, outcome_credit
from genrl.objectives.terms import SequenceMean, item_tokens, penalties, ratio_stats
from genrl.ops import segment_gather, segment_sum, world_size, world_sum
from genrl.options import option


def bounded_ratio(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    """Divide pi by pi'_old: pi'_old = max(pi_old, sg(pi)) for A >= 0 and max(pi_old, 1 - sg(pi)) for A < 0.

    OneRec-V2 (arXiv:2508.20900, section 3.1.2). Only the numerator carries gradient, so value and coefficient are
    min(r, 1) for A >= 0 and min(r, pi / (1 - pi)) for A < 0: never more than r, nor than the coefficient of binary
    cross-entropy.

    Example:
        >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
        >>> bounded_ratio(half, quarter, torch.tensor([-1.0]))
        tensor([1.])
    """
    now = logps.detach().clamp(max=0)
    rest = torch.log(-torch.expm1(now))  # log(1 - pi), exact for small pi
    bound = torch.maximum(old_logps, torch.where(advantages >= 0, now, rest))
    return torch.exp(logps - bound)


def item_segments(completions: Completions) -> Tensor:
    """Which item each chosen item token belongs to [B, T]; -1 none."""
    return completions.item_ids.masked_fill(~completions.chosen, -1)


@dataclass(frozen=True)
class GradientBounded(Surrogate):
    """Ratio with bounded gradient times advantage (GBPO).

    The paper writes the probability of an item but analyses "a specific token": both are offered. "item" is the product
    over the tokens that decide an item, one value per item and their mean per completion. There negatives almost vanish
    (pi is tiny, so pi / (1 - pi) is), and thinking gets no gradient.
    """

    level: Literal["token", "item"] = "token"

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        ratios, advantages = self.ratios(scores, batch)
        values = ratios * advantages
        if self.level == "token":
            return values, ratio_stats(ratios, batch.completions)
        present = item_tokens(batch.completions) > 0
        mean = (values * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        told = ratio_stats(segment_gather(ratios, item_segments(batch.completions)), batch.completions)
        return mean.expand_as(batch.advantages), told

    def ratios(self, scores: Scores, batch: Experience) -> tuple[Tensor, Tensor]:
        """Bounded ratios with gradient and their advantages: [B, T] at token level, [B, N] at item level."""
        completions, advantages = batch.completions, batch.advantages
        logps, old = (each.logps.masked_fill(~completions.chosen, 0) for each in (scores, completions))
        if self.level == "token":
            return bounded_ratio(logps, old, advantages), advantages
        segments, count = item_segments(completions), completions.items.shape[1]
        logps, old, credit = (segment_sum(each, segments, count) for each in (logps, old, advantages))
        credit = credit / item_tokens(completions).clamp(min=1)
        return bounded_ratio(logps, old, credit), credit


@dataclass(frozen=True)
class SignCredit(Credit):
    """+1, 0 or -1 per completion, by its place in the batch (OneRec-V2, arXiv:2508.20900 section 3.1.2).

    A = +1 if fewer than a share 1 - `quantile` of the whole batch, all ranks together, earn strictly more (and the
    reward is not negative), -1 if the reward is at most `negative`, else 0. The paper ranks watch times within buckets
    of video length and takes the top quarter; negative feedback is explicit there. Here the outcome reward stands for
    both signals. Rewards that tie have one advantage: were a reward held against the quantile instead, none would be
    above it as soon as more than a quarter of the batch has the largest one, and nothing good would be learned any
    more. Rewards are equal up to the rounding of a float32 sum.
    """

    quantile: float = 0.75
    negative: float = 0.0

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        outcome = rewards.outcome
        everything = _of_all_ranks(outcome).sort().values
        slack = ROUNDING * _of_all_ranks(rewards.absolute.outcome).max()
        better = len(everything) - torch.searchsorted(everything, outcome + slack, right=True)
        bad = outcome <= self.negative
        good = (better + 1e-6 < (1 - self.quantile) * len(everything)) & ~bad  # (1 - 0.7) * 10 is a little above 3
        return spread(good.to(outcome.dtype) - bad.to(outcome.dtype), completions)


def _of_all_ranks(values: Tensor) -> Tensor:
    """Values [B] of all ranks, one after the other; the number of rows may differ between ranks."""
    world = world_size()
    if world == 1:
        return values
    rank = torch.distributed.get_rank()
    counts = torch.zeros(world, dtype=torch.int64, device=values.device)
    counts[rank] = values.shape[0]
    counts = world_sum(counts)
    starts = torch.cumsum(counts, 0) - counts
    everything = values.new_zeros(int(counts.sum()))
    everything[starts[rank] : starts[rank] + values.shape[0]] = values
    return world_sum(everything)


@dataclass
class GBPOConfig(OutcomeOptions):
    """Options of `gbpo`."""

    level: Literal["token", "item"] = "token"
    """Bound the probability of each token, or of the item (product of its tokens)."""
    advantage: Literal["group", "sign"] = "group"
    """Group-relative advantage as in GRPO, or the paper's +1 / 0 / -1 by thresholds over the batch."""
    positive_quantile: float = option(0.75, ge=0, le=1)
    """sign: +1 where less than the rest of the batch, 1 - this, earns strictly more (paper: the top quarter)."""
    negative_reward: float = 0.0
    """sign: -1 for rewards up to this."""


@OBJECTIVES.register("gbpo", config=GBPOConfig, title="Gradient-Bounded Policy Optimization", paper="arXiv:2508.20900")
def gbpo(config: GBPOConfig) -> PolicyObjective:
    """Gradient-Bounded Policy Optimization (OneRec-V2, arXiv:2508.20900, section 3.1.2).

    loss = -1/B sum_i 1/|y_i| sum_t pi / pi'_old A_i, with pi'_old = max(pi_old, sg(pi)) for A >= 0 and
    max(pi_old, 1 - sg(pi)) for A < 0. Every token keeps a gradient; its coefficient is min(r, 1) or min(r, pi / (1 -
    pi)).

    Deviation: the paper's advantage needs watch times and explicit dislikes (`advantage=sign` is its shape on our
    rewards); the default is the group-relative one that its baselines use, so that only the surrogate differs from
    `grpo`.
    """
    if config.advantage == "sign" and config.compare != "all":
        raise ConfigError(
            f"objective 'gbpo': compare={config.compare} compares the completions of a group, advantage=sign does not. "
            f"Set advantage=group, or leave compare out."
        )
    if config.advantage == "sign":
        credit: Credit = SignCredit(config.positive_quantile, config.negative_reward)
    else:
        credit = outcome_credit(config)
    return PolicyObjective(
        credit=credit,
        surrogate=GradientBounded(config.level),
        reduction=SequenceMean(),
        penalties=penalties(config.kl_coef, config.entropy_coef),
        repair=config.repair,
    )
