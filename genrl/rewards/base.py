"""What a reward is, and the verifier that adds rewards up into a `Rewards`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genrl.batches import Batch, Completions, Requests, Rewards, Targets
from genrl.catalog.items import Catalog, column_numbers
from genrl.errors import ComponentError, ConfigError
from genrl.foreign import calling
from genrl.ops import all_finite, expect, where_not_finite
from genrl.registry import Registry
from genrl.rewards.answers import as_values


@dataclass(frozen=True)
class RewardContext(Batch):
    """What rewards may know of the catalogue and of the user besides the completions and their targets."""

    codes: Tensor
    """[I + 1, K] int64 code of each item on each SID level; the last row is all -1 and stands for "no item"."""
    popularity: Tensor
    """[I] int64 interactions of each item in the training part."""
    categories: Tensor
    """[I] int64 category of each item, the level that diversity is measured on; -1 unknown."""
    cold: Tensor
    """[I] bool: the items that count as cold."""
    attributes: Mapping[str, list[str]] = field(default_factory=dict)
    """Column of `data.columns.attributes` -> [I] its texts, "" where unknown."""
    collision_level: bool = False
    """Whether the last SID level says nothing of an item, and only tells those apart that share the codes before it."""
    feedback: tuple[str, ...] = ()
    """Columns of `data.columns.feedback`, the names in `Targets.feedback`."""
    history: Tensor | None = None
    """[B, H] int64 items that the user of each *completion* chose before, oldest first; -1 pads. None: outside a
    rollout."""
    ids: tuple[str, ...] = field(default=(), repr=False)
    """[I] what the data calls each item; empty: not known."""
    cache: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """What was computed of the catalogue once; shared with the contexts of all rollouts."""

    def __post_init__(self) -> None:
        size = self.popularity.shape[0]
        expect(self.codes, "RewardContext.codes", (size + 1, None), torch.int64)
        expect(self.categories, "RewardContext.categories", (size,), torch.int64)
        expect(self.cold, "RewardContext.cold", (size,), torch.bool)
        if self.codes.device.type == "cpu" and bool((self.codes[-1] != -1).any()):  # where it is made
            raise ValueError("RewardContext.codes: the last row must be all -1; use RewardContext.from_catalog.")

    @classmethod
    def from_catalog(
        cls, catalog: Catalog, codes: Tensor, collision_level: bool = False, feedback: Iterable[str] = ()
    ) -> RewardContext:
        """What a catalogue says of its items, and their codes [I, K] with the row of "no item" appended.

        Example:
            >>> RewardContext.from_catalog(Catalog.from_table(["b7"]), torch.tensor([[0, 1]])).codes.tolist()
            [[0, 1], [-1, -1]]
        """
        none = codes.new_full((1, codes.shape[1]), -1)
        known = (catalog.train_counts, catalog.categories, catalog.cold, catalog.attributes)
        return cls(torch.cat([codes, none]), *known, collision_level, tuple(feedback), ids=catalog.item_ids)

    @property
    def levels(self) -> int:
        """K: codes per SID, the collision level included."""
        return self.codes.shape[1]

    def codes_of(self, items: Tensor) -> Tensor:
        """Codes of catalogue rows: [...] -> [..., K]; -1 (no item) gives -1 on every level."""
        return self.codes[items]  # the last row is "no item"

    def categories_of(self, items: Tensor) -> Tensor:
        """Categories of catalogue rows, in the shape of `items`; -1 (no item) gives -1 (unknown)."""
        return torch.where(items < 0, -1, self.categories[items.clamp(min=0)])

    def called(self, item: int) -> str:
        """How messages call a catalogue row; -1 is no item."""
        if item < 0:
            return "no item"
        return repr(self.ids[item]) if self.ids else f"item {item}"

    def level(self, column: str | None) -> Tensor:
        """Number [I] of each item's value in a column of `attributes`, -1 unknown; None stands for `categories`.

        Raises:
            ConfigError: if there is no such column.
        """
        if column is None:
            return self.categories
        key = f"level {column}"
        if key not in self.cache:
            self.cache[key] = column_numbers(self.attributes, column)
        return self.cache[key].to(self.categories.device)

    @property
    def sharing(self) -> Tensor:
        """[I + 1] float32: how many items have exactly the SID of this item; 1 without collisions."""
        if "sharing" not in self.cache:
            _, inverse, counts = self.codes.unique(dim=0, return_inverse=True, return_counts=True)
            self.cache["sharing"] = counts[inverse].float()
        return self.cache["sharing"]


class Reward(ABC):
    """A verifiable reward: a pure function of what was generated and what the user really chose.

    A subclass names its options in a dataclass `Config` whose first field is `weight: float = 1.0`, says at which level
    it speaks, and computes one value per completion ("outcome"), step ("step") or item ("item") of it.
    """

    level: ClassVar[Literal["outcome", "step", "item"]]
    match: ClassVar[bool] = True
    """Of a step reward: whether it says that the step matched the target. `Rewards.steps` adds up those that do,
    `Rewards.step_shaping` the others (`format`)."""
    thinking: ClassVar[bool] = False
    """Whether it judges thinking, so that a layout without any is refused."""
    uses_information: ClassVar[bool] = False
    """Whether completions need `information`, which the policy is asked for."""
    Config: ClassVar[type]

    def __init__(self, config: Any = None) -> None:  # noqa: ANN401 (the subclass's own Config)
        self.config = self.Config() if config is None else config

    def check(  # noqa: B027 (most rewards fit every layout)
        self, steps: int, context: RewardContext, items: int = 1
    ) -> None:
        """Refuse a layout of so many steps and items per completion that the reward does not fit, before training."""

    @abstractmethod
    def __call__(self, completions: Completions, targets: Targets, context: RewardContext) -> Tensor:
        """float32 [B] for an outcome reward, [B, S] for a step reward, [B, N] for an item reward.

        Args:
            completions: B = P*G of S steps each.
            targets: one row per *completion*, items [B, M], -1 pads; feedback [B, M], NaN where the log has none.
            context: what is known of items and users, on the rollout's device.
        """


REWARDS: Registry[Reward] = Registry("reward", "genrl.rewards")


def named(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which reward stands under a name of the section `rewards`, and its options: `reward: KIND`, or by its name.

    Example:
        >>> named("like", {"reward": "feedback", "column": "is_like"}), named("format", {})
        (('feedback', {'column': 'is_like'}), ('format', {}))
    """
    return str(options.get("reward") or name), {key: value for key, value in options.items() if key != "reward"}


class Verifier:
    """Adds weighted rewards up.

    steps[b, s] = sum_j w_j * match_j[b, s];  step_shaping[b, s] = sum_l w_l * other_l[b, s];
    outcome[b] = sum_i w_i * outcome_i[b] + sum_n w_n * item_n[b] + sum_s (steps[b, s] + step_shaping[b, s])

    A reward of weight 0 is computed and logged, and changes no sum.

    Args:
        rewards: name -> (reward, weight), in the order they are logged.
        context: catalogue facts; moved to the device of the first rollout once.
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
    def step_names(self) -> tuple[str, ...]:
        """Names of the step rewards that count and say whether a step matched; empty: nothing for step advantages."""
        counting = (name for name, weight in self.weights.items() if weight != 0)
        return tuple(name for name in counting if self.rewards[name].level == "step" and self.rewards[name].match)

    @property
    def uses_information(self) -> bool:
        """Whether completions need `information`."""
        return any(reward.uses_information for reward in self.rewards.values())

    @torch.no_grad()
    def __call__(self, completions: Completions, requests: Requests) -> Rewards:
        """Judge G completions for each of P requests.

        Raises:
            ComponentError: if a reward of a user raises, or one returns anything but finite numbers of its shape.
        """
        size, rows = completions.group_size, completions.tokens.shape[0]
        if len(requests) != len(completions):
            raise ValueError(
                f"{len(requests)} requests; a rollout of {len(completions)} prompts x {size} completions needs "
                f"{len(completions)}."
            )
        if self.context.codes.device != completions.items.device:
            self.context = self.context.to(completions.items.device)
        context = replace(self.context, history=requests.history.repeat_interleave(size, dim=0))
        targets = requests.wanted.repeat(size)
        shapes = {"outcome": (rows,), "step": (rows, completions.num_steps), "item": tuple(completions.items.shape)}
        values = {}
        for name, reward in self.rewards.items():
            with calling(f"reward {name!r}", reward):
                value = reward(completions, targets, context)
            values[name] = as_values(value, name, reward.level, shapes[reward.level], completions.items.device)
        _check_finite(values, completions, targets, context)
        rewards = self.rewards.items()
        shaping = frozenset(name for name, reward in rewards if reward.level == "step" and not reward.match)
        per_item = frozenset(name for name, reward in rewards if reward.level == "item")
        return Rewards(values, dict(self.weights), shaping, per_item)


def _check_finite(
    values: Mapping[str, Tensor], completions: Completions, targets: Targets, context: RewardContext
) -> None:
    """Refuse rewards that are NaN or infinite, with the first row that has one; looks at the device once."""
    if all_finite(values.values()):
        return
    name, (row, value, others) = next(
        (name, found) for name, each in values.items() if (found := where_not_finite(each)) is not None
    )
    assert context.history is not None
    prompt, member = divmod(row, completions.group_size)
    shown = ", ".join(context.called(item) for item in completions.items[row].tolist())
    seen = [item for item in context.history[row].tolist() if item >= 0]
    behind = f"a history that ends with {context.called(seen[-1])}" if seen else "no history"
    wanted = ", ".join(context.called(item) for item in targets.items[row].tolist() if item >= 0) or "nothing"
    more = f" It is so in {others} more rows." if others else ""
    raise ComponentError(
        f"reward {name!r} is {value} for completion {member + 1} of prompt {prompt + 1} (row {row}): shown {shown}, "
        f"wanted {wanted}, behind {behind}.{more} Rewards must be finite: give such a row 0, or what it is worth."
    )


def build_verifier(
    options: Mapping[str, Mapping[str, Any] | None],
    context: RewardContext,
    thinking: bool | None = None,
    steps: int | None = None,
    items: int = 1,
) -> Verifier:
    """Build the rewards of a configuration, name -> its options; None drops the reward.

    The option `reward` says which reward it is where the name is another one, so that one kind may stand there twice.

    Raises:
        UnknownComponentError: for a name that no reward has.
        ConfigError: for an unknown or ill-typed option, a Config without `weight`, a reward that judges thinking where
            the layout has none (`thinking=None`: not known), or when nothing is left.
        LayoutError: from a reward that does not fit a layout of `steps` steps (None: not known) and `items` items.
    """
    rewards: dict[str, tuple[Reward, float]] = {}
    for name, values in options.items():
        if values is None:
            continue
        reward = REWARDS.build(*named(name, values))
        weight = getattr(getattr(reward, "config", None), "weight", None)
        if weight is None:
            raise ConfigError(f"reward {name!r} has no weight: its Config needs a first field 'weight: float = 1.0'.")
        if reward.thinking and thinking is False:
            raise ConfigError(
                f"rewards.{name} judges thinking, and this layout has none. Drop it with rewards.{name}=null, "
                f"or choose layout=blocked."
            )
        if steps is not None:
            with calling(f"reward {name!r}", reward):
                reward.check(steps, context, items)
        rewards[name] = (reward, weight)
    return Verifier(rewards, context)
