"""Cross-entropy on the targets: the control that every reward-driven objective has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives.base import OBJECTIVES, Credit, Options, PolicyObjective, Setting, Stats, Surrogate
from genrl.objectives.terms import penalties, reduction
from genrl.ops import masked_mean


@dataclass(frozen=True)
class ConstantCredit(Credit):
    """Advantage 1 everywhere: imitate the completions."""

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        return completions.chosen.to(completions.logps.dtype)


@dataclass(frozen=True)
class LogLikelihood(Surrogate):
    """Advantage times log-probability: supervised imitation where every advantage is 1."""

    def __call__(self, scores: Scores, batch: Experience) -> tuple[Tensor, Stats]:
        logps = scores.logps.masked_fill(~batch.completions.chosen, 0)
        return batch.advantages * logps, {"nll": -masked_mean(logps, batch.completions.chosen)}


@dataclass
class CEConfig(Options):
    """Options of `ce`."""

    reduction: Literal["token", "sequence"] = "token"
    """Mean over all tokens, or over completions of means over tokens."""


@dataclass(frozen=True)
class TargetLikelihood(LogLikelihood):
    """Log-likelihood of completions that are the targets."""

    trains_on_targets = True

    def missing(self, setting: Setting) -> Iterator[str]:
        if setting.thinking and (setting.items or 1) > 1:
            yield (
                f"one item behind the thinking, because it is the target, and this layout writes {setting.items}. "
                "Choose layout=blocked, or layout=sid"
            )


@OBJECTIVES.register(
    "ce", config=CEConfig, title="Cross-entropy on the targets (control)", paper="none: supervised control"
)
def ce(config: CEConfig) -> PolicyObjective:
    """Cross-entropy: loss = -mean log pi(target token); the rollout holds the targets, one completion per prompt.

    With a layout that thinks, the policy first writes as in any rollout, G times for each of P prompts, and the tokens
    of the target y_p stand in the place of its own item:

        L = -1 / (P G) sum_p sum_g log pi(y_p | x_p, z_pg),  z_pg ~ pi(. | x_p),

    divided by the mean number of the target's tokens that have an alternative (`reduction: token`; with `sequence` each
    completion by its own number). Thinking z_pg is given: its tokens have no weight, in the penalties neither. Where
    blocks stand between codes, each is written behind the target's codes before it. Completions that fail before their
    item have no place for the target and do not count: P G is the number of the others.

    It is an upper bound of -log mean_g pi(y_p | x_p, z_pg) (Jensen), the loss of a ranking behind several thoughts, and
    has another gradient: that one weighs thought g by pi(y_p | x_p, z_pg) / sum_h pi(y_p | x_p, z_ph), for which a
    prompt's whole group has to be scored before its loss. Neither teaches what to think: as z is drawn from pi, the
    gradient of the expectation has a further term, the score of z_pg times what the thought earns (of L:
    log pi(y_p | x_p, z_pg)), which is a reward and reinforcement learning; see reward `information`.
    """
    return PolicyObjective(
        credit=ConstantCredit(),
        surrogate=TargetLikelihood(),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
