"""Rewards for the form of a completion, whatever it recommends."""

from dataclasses import dataclass

from torch import Tensor

from genrl.batches import Completions, Targets
from genrl.errors import LayoutError
from genrl.rewards.base import REWARDS, Reward, RewardContext


@REWARDS.register("format", title="thinking that ends within its budget")
class Format(Reward):
    """Step k gets 1 if the policy itself ended think block k within its budget and the completion names an item.

    A block that was closed for the policy, or never was, gets 0; so do all steps of a completion that names no item.
    It is a step reward but no match: `Rewards.step_shaping` holds it, and every objective adds it to the match rewards.
    """

    level = "step"
    match = False
    thinking = True

    @dataclass
    class Config:
        """Options of format."""

        weight: float = 1.0
        """Factor of this reward in the sum; the authors of SAPO take 0.2."""

    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        if completions.closed is None:
            raise LayoutError(
                "Format judges think blocks, and this layout has none. Drop it with rewards.format=null, or choose "
                "layout=blocked."
            )
        return (completions.closed & (completions.items >= 0).all(dim=1, keepdim=True)).float()
