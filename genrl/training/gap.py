"""Between sampling and scoring: the same policy says slightly different things in bfloat16.

Tokens are drawn one after the other from a cache, and scored all at once. In float32 the log-probabilities agree to
1e-6; in bfloat16 they differ by hundredths of a nat, which clipping would take for a policy that has moved. So the old
log-probabilities of an objective are always those of scoring, and what is left is that tokens were drawn by a slightly
different policy: a gap that is logged, and that truncated importance weights can make up for (Ionides 2008, Truncated
Importance Sampling; between sampler and trainer: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training).
"""

from dataclasses import replace

from torch import Tensor

from genrl.batches import Experience
from genrl.ops import masked_mean


def based_on(experience: Experience, logps: Tensor) -> Experience:
    """The experience with other old log-probabilities [B, T], without gradient: ratios to them are exactly 1."""
    return replace(experience, completions=replace(experience.completions, logps=logps.detach()))


def sampling_gap(experience: Experience, logps: Tensor) -> dict[str, Tensor]:
    """How far scoring's log-probabilities [B, T] are from those of sampling, in nats: mean and largest.

    Over the tokens that the policy chose.
    """
    drawn = experience.completions
    gap = (logps.detach() - drawn.logps).abs().masked_fill(~drawn.chosen, 0)
    return {"policy/sampling_gap": masked_mean(gap, drawn.chosen), "policy/sampling_gap_max": gap.max()}


def truncated(experience: Experience, logps: Tensor, bound: float) -> Experience:
    """The experience with each token's weight times min(pi_scoring / pi_sampling, bound), without gradient.

    It holds the log-probabilities of sampling; those of scoring are `logps` [B, T].
    """
    drawn = experience.completions
    ratio = (logps.detach() - drawn.logps).masked_fill(~drawn.chosen, 0).exp().clamp(max=bound)
    return replace(experience, weights=experience.weights * ratio.to(experience.weights.dtype))
