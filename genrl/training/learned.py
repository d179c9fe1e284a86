"""Whether a stage learned anything, and if not, why: rewards that tell nothing apart, groups without advantage."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from genrl.batches import Experience, Rewards
from genrl.objectives import live_prompts
from genrl.ops import world_max, world_sum
from genrl.policy.sharding import gathered
from genrl.training.rl import RLModule
from genrl.training.stage import RankingModule


class Learned(Callback):
    """Watches weights and rewards over a whole stage, resumed or not; looks at the device at the end of rounds only.

    Args:
        stage: its name.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.start: list[float] = []
        self.ranges: dict[str, tuple[list[float], list[float]]] = {}
        """Reward with weight -> least and largest value of each of its columns, over the rounds so far."""
        self.completions = 0
        self.alive = False
        self.told = False
        self._found: list[tuple[dict[str, tuple[Tensor, Tensor]], Tensor, int]] = []
        self._seen: object = None

    def state_dict(self) -> dict[str, Any]:
        names = ("start", "ranges", "completions", "alive", "told")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note what the weights are."""
        if not self.start and isinstance(module, RankingModule):
            self.start = fingerprint(module)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Note a new rollout."""
        if isinstance(module, RLModule) and module.writes and module.sampled is not self._seen:
            self._seen = module.sampled
            whole, rewards, _ = module.sampled  # type: ignore[misc]
            self._found.append(noted(whole, rewards))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Add up what the rollouts of the round were like on all ranks, and warn once of what teaches nothing."""
        if not isinstance(module, RLModule) or not self._found:
            return
        self._add_up(module.device)
        found = self._of_rewards()
        if found and not self.told and trainer.global_step < module.max_steps:
            self.told = True
            if trainer.is_global_zero:
                warnings.warn(f"stage {self.stage}, so far: {' '.join(found)}", stacklevel=1)

    def _add_up(self, device: torch.device) -> None:
        for name in self._found[0][0]:
            low = torch.stack([ranges[name][0] for ranges, _, _ in self._found]).amin(0)
            high = torch.stack([ranges[name][1] for ranges, _, _ in self._found]).amax(0)
            before = self.ranges.get(name, ([torch.inf] * len(low), [-torch.inf] * len(high)))
            lows, highs = (-world_max(-low)).tolist(), world_max(high).tolist()
            self.ranges[name] = (list(map(min, lows, before[0])), list(map(max, highs, before[1])))
        live = torch.stack([alive for _, alive, _ in self._found]).any()
        self.alive = self.alive or bool(world_max(live.long().to(device)))
        count = torch.tensor(sum(count for _, _, count in self._found), device=device)
        self.completions += int(world_sum(count))
        self._found = []

    def _of_rewards(self) -> list[str]:
        """What is to be said of rewards and advantages, in sentences."""
        said = []
        for name, (low, high) in self.ranges.items():
            if low == high:
                value = f"{low[0]:g}" if len(set(low)) == 1 else "the same"
                said.append(
                    f"reward {name!r} was {value} for all {self.completions:,} completions, so it tells none from "
                    f"another."
                )
        if self.completions and not self.alive:
            said.append("No group of any rollout had an advantage.")
        return said

    def notes(self, module: RankingModule) -> list[str]:
        """What is to be said of the stage once it is trained; empty: nothing."""
        said, steps, skipped = self._of_rewards(), module.trainer.global_step, module.skips.total
        if skipped:
            said.append(f"{skipped} of {steps} steps were skipped, because their loss or gradient was NaN or infinite.")
        if self.start and self.start == fingerprint(module):
            said.insert(0, "Nothing was learned: the weights are those that the stage began with.")
        elif self.completions and not self.alive:
            said.insert(0, "Nothing was learned from rewards: the weights moved for other reasons (penalties, decay).")
        return said


def noted(whole: Experience, rewards: Rewards) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, int]:
    """What counts of a rollout.

    Returns:
        Reward with weight -> least and largest value [n] of each of its columns; bool scalar, whether a group had any
        advantage; completions.
    """
    counting = {name: value.view(len(value), -1) for name, value in rewards.values.items() if rewards.weights[name]}
    ranges = {name: (value.amin(0), value.amax(0)) for name, value in counting.items()}
    return ranges, live_prompts(whole).any(), len(whole.completions.tokens)


def fingerprint(module: RankingModule) -> list[float]:
    """Sum and length of each trained parameter in float64: equal for equal weights, and as good as never for others."""
    values = [value.detach() for value in module.trainable().values()]
    sums = [found for each in values for found in map(gathered, (each.sum(dtype=torch.float64), _length(each)))]
    return torch.stack(sums).tolist() if sums else []


def _length(value: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(value, dtype=torch.float64)
    return length
