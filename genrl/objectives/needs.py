"""Check what an objective needs before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from genrl.errors import ConfigError
from genrl.objectives.base import Objective


def check_needs(
    name: str,
    objective: Objective,
    *,
    step_rewards: bool,
    components: tuple[str, ...],
    group_size: int,
    items: int | None = None,
    categories: bool | None = None,
    thinking: bool | None = None,
) -> None:
    """Compare an objective's needs with what the configuration will give it.

    Args:
        name: the objective's name, for the message.
        objective: the objective.
        step_rewards: whether a step reward with weight is configured that says whether a step matched.
        components: names of all configured rewards.
        group_size: completions per prompt.
        items: items per completion; None: not known yet.
        categories: whether items have categories; None: not known yet.
        thinking: whether the layout has thinking; None: not known.

    Raises:
        ConfigError: naming everything that is missing, with the remedy.
    """
    missing = [
        *_missing_rewards(objective.needs, step_rewards, components),
        *_missing_layout(objective.needs, group_size, items, categories, thinking),
    ]
    if missing:
        raise ConfigError("\n".join(f"objective {name!r} needs {problem}" for problem in missing))


def _missing_rewards(needs: frozenset[str], step_rewards: bool, components: tuple[str, ...]) -> Iterator[str]:
    known = ", ".join(components)
    if "steps" in needs and not step_rewards:
        yield f"a match per step; none of rewards [{known}] gives one. Add e.g. rewards.level_match.weight=1"
    if "components" in needs and not components:
        yield "at least one reward by name; none is configured. Add e.g. rewards.exact_match.weight=1"
    for need in sorted(needs):
        wanted = need.removeprefix("component:")
        if wanted != need and wanted not in components:
            yield f"the reward {wanted!r}; rewards are [{known}]. Add rewards.{wanted}.weight=1"


def _missing_layout(
    needs: frozenset[str], group_size: int, items: int | None, categories: bool | None, thinking: bool | None
) -> Iterator[str]:
    if "group" in needs and group_size < 2:
        yield (
            f"several completions per prompt to compare; rollout.group_size is {group_size}. "
            f"Set it to 2 or more, e.g. rollout.group_size=16"
        )
    if "slate" in needs and items == 1:
        yield "several items per completion; this layout has one. Set objective.diversity=group, or choose layout=slate"
    if "categories" in needs and categories is False:
        yield (
            "item categories; the item table has none. Name their column in data.columns.category, "
            "or set objective.diversity=policy"
        )
    if "targets" in needs and thinking:
        yield "a layout without thinking, because nobody wrote the thinking before a target. Choose layout=sid"
    if "thinking" in needs and thinking is False:
        yield "a layout with thinking; this one has none. Set objective.scope=think_and_sid, or choose layout=blocked"
