"""A plug-in for SAGE's ablation "without decoupling": the objective `sage-summed`.

python -m genrl compare --plugin tools/figures_summed.py --objectives sage,summed=sage-summed ...
"""

from collections.abc import Iterator

from torch import Tensor

from genrl.batches import Completions, Rewards
from genrl.objectives import OBJECTIVES, DecoupledCredit, GroupNorm, PolicyObjective, Setting
from genrl.objectives.sage import SAGEConfig, sage


class SummedCredit(DecoupledCredit):
    """SAGE's credit where the weighted sum of the rewards is normalised as one reward (arXiv:2601.21452, eq. 7)."""

    def missing(self, setting: Setting) -> Iterator[str]:
        """Groups; the rewards need not be there one by one."""
        return self.norm.missing(setting)

    def __call__(self, rollout: Completions, rewards: Rewards) -> Tensor:
        """Return advantages [B, T]."""
        return super().__call__(rollout, Rewards({"sum": rewards.outcome}, {"sum": 1.0}))


@OBJECTIVES.register(
    "sage-summed", config=SAGEConfig, title="SAGE without decoupled rewards", paper="ablation of arXiv:2601.21452"
)
def sage_summed(config: SAGEConfig) -> PolicyObjective:
    """Replace the credit of `sage`, and nothing else."""
    whole = sage(config)
    credit = SummedCredit(GroupNorm(ddof=config.ddof, eps=config.eps), config.whiten)
    return PolicyObjective(credit, whole.surrogate, whole.reduction, whole.penalties)
