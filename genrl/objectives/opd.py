"""On-policy distillation: each code that the policy wrote is judged by a teacher who knows the same trie."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.errors import ConfigError
from genrl.objectives.base import OBJECTIVES, ClipOptions, Credit, Options, PolicyObjective, Setting
from genrl.objectives.terms import ClippedRatio, FixedBounds, penalties, reduction


@dataclass(frozen=True)
class TeacherCredit(Credit):
    """How much likelier the teacher p finds a code than the policy pi does, less what was to be expected of pi.

    A_t = log p(c_t | s_t) - log pi(c_t | s_t) + KL(pi(. | s_t) || p(. | s_t)), s_t being the codes before. The
    divergence is summed over all codes that may follow, not estimated, so that the expectation of A_t over pi is 0 at
    every prefix, and E[A_t grad log pi(c_t | s_t)] is the gradient of -KL at that prefix. Words, of which the teacher
    says nothing, get 0. Rewards do not count.
    """

    uses_teacher = True

    def missing(self, setting: Setting) -> Iterator[str]:
        if setting.teacher is False:
            yield "a teacher; none is configured. Add teacher.run=FOLDER, a finished run on the same data"

    def __call__(self, completions: Completions, rewards: Rewards) -> Tensor:
        if completions.teacher_gap is None or completions.teacher_kl is None:
            raise ConfigError("distillation needs what a teacher says of the completions. Set teacher.run=FOLDER.")
        return completions.teacher_gap + completions.teacher_kl


@dataclass
class OPDConfig(ClipOptions, Options):
    """Options of `opd`."""

    reduction: Literal["token", "sequence"] = "token"
    """Mean over all tokens, or over completions of means over tokens."""


@OBJECTIVES.register(
    "opd",
    config=OPDConfig,
    title="On-policy distillation",
    paper="arXiv:2306.13649",
)
def opd(config: OPDConfig) -> PolicyObjective:
    """On-policy distillation: loss = -mean_t min(r A_t, clip(r, 1-e, 1+e) A_t), A_t as in `TeacherCredit`.

    Reverse KL to a teacher on what the student itself writes (Agarwal et al., GKD, arXiv:2306.13649), as a policy
    gradient with the log-ratio of teacher to student as the reward of each token and no reward from later ones
    (Lu and Thinking Machines Lab 2025, On-Policy Distillation). Theirs has no baseline; over a trie the exact one costs
    nothing.
    """
    return PolicyObjective(
        credit=TeacherCredit(),
        surrogate=ClippedRatio("token", FixedBounds(config.clip_low, config.clip_high)),
        reduction=reduction(config.reduction),
        penalties=penalties(config.kl_coef, config.entropy_coef),
    )
