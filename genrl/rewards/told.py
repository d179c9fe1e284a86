"""Reward for thinking by what it tells of the target."""

from dataclasses import dataclass

from torch import Tensor

from genrl.batches import Completions, Targets
from genrl.errors import LayoutError
from genrl.options import option
from genrl.rewards.base import REWARDS, Reward, RewardContext


@REWARDS.register("information", title="thinking that makes the target likelier than it is without")
class Information(Reward):
    """log p(code k of the target | codes before, history, thinking) - the same without thinking, for each step k.

    In nats, bounded to [-clip, clip] at each step; a thought that failed gets -clip at all of them. What item the
    completion names does not matter. It is a step reward but no match: `Rewards.step_shaping` holds it.

    The policy is its own judge: the same thought earns another amount once the weights have moved.
    """

    level = "step"
    match = False
    thinking = True
    uses_information = True

    @dataclass
    class Config:
        """Options of information."""

        weight: float = 1.0
        """Factor of this reward in the sum."""
        clip: float = option(2.0, gt=0)
        """Largest size of a step's value, nats."""

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        if completions.information is None:
            raise LayoutError(
                "Information judges whole thoughts before an item, and these completions have none. Drop it with "
                "rewards.information=null, or choose layout=blocked with layout.order=tail."
            )
        return completions.information.float().clamp(-self.config.clip, self.config.clip)
