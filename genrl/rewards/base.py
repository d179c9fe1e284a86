"""What a reward is, and the verifier that adds rewards up into a `Rewards`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genrl.batches import Completions, Rewards, Targets
from genrl.errors import ConfigError
from genrl.ops import expect
from genrl.registry import Registry


@dataclass(frozen=True)
class RewardContext:
    """What rewards may know of the catalogue besides the rollout and its targets."""

    codes: Tensor
    """[I + 1, K] int64 code of each item on each SID level; the last row is all -1 and stands for "no item"."""
    popularity: Tensor
    """[I] interactions of each item in the training part."""

    def __post_init__(self) -> None:
        expect(self.codes, "RewardContext.codes", (self.popularity.shape[0] + 1, None), torch.int64)
        if bool((self.codes[-1] != -1).any()):
            raise ValueError("RewardContext.codes: the last row must be all -1; use RewardContext.from_codes.")

    @classmethod
    def from_codes(cls, codes: Tensor, popularity: Tensor) -> RewardContext:
        """Append the row of "no item" to the codes [I, K] of a SID table.

        Example:
            >>> RewardContext.from_codes(torch.tensor([[0, 1]]), torch.tensor([3])).codes.tolist()
            [[0, 1], [-1, -1]]
        """
        none = codes.new_full((1, codes.shape[1]), -1)
        return cls(torch.cat([codes, none]), popularity)

    @property
    def levels(self) -> int:
        """K: codes per SID, the collision level included."""
        return self.codes.shape[1]

    def codes_of(self, items: Tensor) -> Tensor:
        """Codes of catalogue rows: [...] -> [..., K]; -1 (no item) gives -1 on every level."""
        rows = torch.where(items < 0, self.codes.shape[0] - 1, items)
        return self.codes[rows]

    @cached_property
    def sharing(self) -> Tensor:
        """[I + 1] float32: how many items have exactly the SID of this item; 1 without collisions."""
        _, inverse, counts = self.codes.unique(dim=0, return_inverse=True, return_counts=True)
        return counts[inverse].float()

    def to(self, device: torch.device | str) -> RewardContext:
        """Return the context on another device."""
        return RewardContext(self.codes.to(device), self.popularity.to(device))


class Reward(ABC):
    """A verifiable reward: a pure function of what was generated and what the user really chose.

    A subclass names its options in a dataclass `Config` whose first field is `weight: float = 1.0`, says at which level
    it speaks, and computes one value per completion ("outcome") or per completion and step ("step").
    """

    level: ClassVar[Literal["outcome", "step"]]
    match: ClassVar[bool] = True
    """Of a step reward: whether it says that the step matched the target. `Rewards.steps` holds those that do,
    `Rewards.shaping` the others (`format`)."""
    thinking: ClassVar[bool] = False
    """Whether it judges thinking, so that a layout without any is refused."""
    Config: ClassVar[type]

    def __init__(self, config: Any = None) -> None:  # noqa: ANN401 (the subclass's own Config)
        self.config = self.Config() if config is None else config

    @abstractmethod
    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        """Judge the completions of a rollout.

        Args:
            completions: B = P*G completions of S steps each.
            targets: one row per *completion*, [B, M]; -1 pads.
            context: codes and popularity of the catalogue, on the rollout's device.

        Returns:
            float32 [B] for an outcome reward, [B, S] for a step reward.
        """


REWARDS: Registry[Reward] = Registry("reward", "genrl.rewards")


class Verifier:
    """Adds weighted rewards up.

    steps[b, s] = sum_j w_j * match_j[b, s];  shaping[b, s] = sum_l w_l * other_l[b, s];
    outcome[b] = sum_i w_i * outcome_i[b] + sum_s (steps[b, s] + shaping[b, s])

    A reward of weight 0 is computed and logged, and changes no sum.

    Args:
        rewards: name -> (reward, weight), in the order they are logged.
        context: catalogue facts; moved to the device of the first rollout once.

    Raises:
        ConfigError: without any reward.
    """

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]], context: RewardContext) -> None:
        if not rewards:
            raise ConfigError(
                f"rewards: none is configured. Known rewards: {', '.join(REWARDS.names())}. "
                f"Add e.g. rewards.exact_match.weight=1."
            )
        self.rewards = {name: reward for name, (reward, _) in rewards.items()}
        self.weights = {name: float(weight) for name, (_, weight) in rewards.items()}
        self.context = context

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Names of the outcome rewards that count (weight other than 0)."""
        return tuple(name for name in self._counting() if self.rewards[name].level == "outcome")

    @property
    def step_names(self) -> tuple[str, ...]:
        """Names of the step rewards that count and say whether a step matched; empty: nothing for step advantages."""
        steps = (name for name in self._counting() if self.rewards[name].level == "step")
        return tuple(name for name in steps if self.rewards[name].match)

    def _counting(self) -> tuple[str, ...]:
        return tuple(name for name, weight in self.weights.items() if weight != 0)

    @torch.no_grad()
    def __call__(self, completions: Completions, targets: Targets) -> Rewards:
        """Judge a rollout.

        Args:
            completions: P prompts with G completions each.
            targets: the prompts' targets [P, M], or one row per completion [B, M].

        Raises:
            ValueError: if `targets` has neither P nor B rows, or a reward returns a wrong shape or dtype.
        """
        targets = self._per_completion(completions, targets)
        context = self._context_on(completions.items.device)
        rows = completions.tokens.shape[0]
        outcome = torch.zeros(rows, device=completions.items.device)
        sums: dict[str, Tensor] = {}
        components: dict[str, Tensor] = {}
        for name, reward in self.rewards.items():
            value = reward(completions, targets, context)
            shape = (rows,) if reward.level == "outcome" else (rows, completions.num_steps)
            expect(value, f"reward {name!r}", shape, torch.float32)
            if reward.level == "step":
                weighted, kind = self.weights[name] * value, "steps" if reward.match else "shaping"
                sums[kind] = sums[kind] + weighted if kind in sums else weighted
                value = value.sum(dim=1)
            components[name] = value
            outcome = outcome + self.weights[name] * value
        return Rewards(outcome, sums.get("steps"), components, dict(self.weights), sums.get("shaping"))

    def _context_on(self, device: torch.device) -> RewardContext:
        if self.context.codes.device != device:
            self.context = self.context.to(device)
        return self.context

    @staticmethod
    def _per_completion(completions: Completions, targets: Targets) -> Targets:
        rows = targets.items.shape[0]
        if rows == completions.tokens.shape[0]:
            return targets
        if rows == len(completions):
            return targets.repeat(completions.group_size)
        raise ValueError(
            f"targets have {rows} rows; a rollout of {len(completions)} prompts x {completions.group_size} completions "
            f"needs {len(completions)} or {completions.tokens.shape[0]}."
        )


def build_verifier(
    options: Mapping[str, Mapping[str, Any] | None], context: RewardContext, thinking: bool | None = None
) -> Verifier:
    """Build the rewards of a configuration.

    Args:
        options: reward name -> its options, `weight` among them; None drops the reward.
        context: catalogue facts.
        thinking: whether the layout has thinking; None: not known.

    Raises:
        UnknownComponentError: for a name that no reward has.
        ConfigError: for an unknown or ill-typed option, a Config without `weight`, a reward that judges thinking where
            there is none, or when nothing is left.
    """
    rewards: dict[str, tuple[Reward, float]] = {}
    for name, values in options.items():
        if values is None:
            continue
        reward = REWARDS.build(name, values)
        weight = getattr(getattr(reward, "config", None), "weight", None)
        if weight is None:
            raise ConfigError(f"reward {name!r} has no weight: its Config needs a first field 'weight: float = 1.0'.")
        if reward.thinking and thinking is False:
            raise ConfigError(
                f"rewards.{name} judges thinking, and this layout has none. Drop it with rewards.{name}=null, "
                f"or choose layout=blocked."
            )
        rewards[name] = (reward, weight)
    return Verifier(rewards, context)
