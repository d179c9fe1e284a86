"""Worked examples of a rollout: what the policy wrote, how it was rewarded, which way each step is pushed."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from genrl.batches import Experience, Requests, Rewards
from genrl.catalog.items import Catalog
from genrl.ops import masked_mean

T = TypeVar("T")
Texts = Callable[[Tensor], tuple[str, ...]]
"""Tokens of one completion [T], without padding -> the text of each of its think blocks."""
SHOWN_HISTORY = 5
"""Latest items of a history that are shown."""


@dataclass(frozen=True)
class Completion:
    """One completion of a sample."""

    item: str
    """Title, or `(no item)`; of a slate those of all items."""
    codes: tuple[int, ...]
    """What each step chose; of a slate the codes of its items, one behind the other."""
    log_prob: float
    """Of the whole completion under the policy that wrote it, nats."""
    reward: float
    """Weighted sum of the components."""
    components: Mapping[str, float]
    """Name -> unweighted reward."""
    advantages: tuple[float, ...]
    """Of each step: above 0 it becomes more likely, below 0 less."""
    drawn: int
    """How many completions of the group are equal to this one, itself included."""
    thinking: tuple[str, ...] = ()
    """Text of each think block that was begun."""


@dataclass(frozen=True)
class Sample:
    """One prompt with its best and its worst completions, best reward first."""

    history: tuple[str, ...]
    """Titles, latest last."""
    target: str
    target_codes: tuple[int, ...]
    completions: tuple[Completion, ...]


def rollout_samples(
    experience: Experience,
    rewards: Rewards,
    prompts: Requests,
    codes: Tensor,
    catalog: Catalog,
    count: int,
    completions: int,
    texts: Texts | None = None,
) -> list[Sample]:
    """The `count` prompts whose completions were rewarded most differently; there is most to see.

    If there are more than `completions` per prompt, half of these are the best and half the worst. Equal ones stand
    there once; of equally rewarded ones the likeliest come first. `codes` [I, K] are the catalogue's SIDs; `texts`
    reads the thinking, where the layout has it.
    """
    groups = rewards.outcome.view(len(prompts), -1)
    spread = groups.max(1).values - groups.min(1).values
    chosen = spread.sort(descending=True, stable=True).indices[:count]
    return [_sample(int(prompt), experience, rewards, prompts, codes, catalog, completions, texts) for prompt in chosen]


def markdown(samples: Sequence[Sample]) -> str:
    """Samples as Markdown tables."""
    return "\n".join(line for sample in samples for line in _lines(sample))


def _sample(
    prompt: int,
    experience: Experience,
    rewards: Rewards,
    prompts: Requests,
    codes: Tensor,
    catalog: Catalog,
    completions: int,
    texts: Texts | None,
) -> Sample:
    drawn = experience.completions
    rows = torch.arange(prompt * drawn.group_size, (prompt + 1) * drawn.group_size, device=drawn.items.device)
    rows = rows[drawn.logps[rows].sum(1).argsort(descending=True, stable=True)]
    rows = rows[rewards.outcome[rows].argsort(descending=True, stable=True)]
    written = [(tuple(drawn.tokens[row].tolist()), float(rewards.outcome[row])) for row in rows]
    counts = Counter(written)
    distinct = dict(zip(reversed(written), reversed(rows.tolist()), strict=True))  # the first of equal ones stays
    shown = _ends(list(counts), completions)
    target = int(prompts.wanted.items[prompt, 0])
    seen = [item for item in prompts.history[prompt].tolist() if item >= 0][-SHOWN_HISTORY:]
    return Sample(
        history=tuple(_title(catalog, item) for item in seen),
        target=_title(catalog, target),
        target_codes=tuple(codes[target].tolist()),
        completions=tuple(
            _completion(distinct[one], experience, rewards, codes, catalog, counts[one], texts) for one in shown
        ),
    )


def _ends(values: list[T], most: int) -> list[T]:
    """The first and the last of some values, half of `most` each, in their order.

    Example:
        >>> _ends([1, 2, 3, 4, 5], 3)
        [1, 2, 5]
    """
    last = most // 2
    return values if len(values) <= most else values[: most - last] + values[len(values) - last :]


def _completion(
    row: int, experience: Experience, rewards: Rewards, codes: Tensor, catalog: Catalog, count: int, texts: Texts | None
) -> Completion:
    drawn = experience.completions
    items = drawn.items[row]
    chosen = drawn.codes[row] if len(items) == 1 else codes[items[items >= 0]].flatten()
    return Completion(
        item="; ".join(_title(catalog, item) for item in items.tolist()),
        codes=tuple(chosen.tolist()),
        log_prob=round(float(drawn.logps[row].sum()), 4),
        reward=round(float(rewards.outcome[row]), 4),
        components={name: round(float(value[row]), 4) for name, value in rewards.components.items()},
        advantages=tuple(round(value, 4) for value in _step_advantages(experience, row)),
        drawn=count,
        thinking=texts(drawn.tokens[row][drawn.written[row]]) if texts is not None else (),
    )


def _step_advantages(experience: Experience, row: int) -> Iterator[float]:
    """The advantage of each step: the mean over its chosen tokens, which nearly always share it."""
    drawn, advantages = experience.completions, experience.advantages[row]
    for step in range(drawn.num_steps):
        yield float(masked_mean(advantages, drawn.chosen[row] & (drawn.step_ids[row] == step)))


def _title(catalog: Catalog, item: int) -> str:
    if item < 0:
        return "(no item)"
    return catalog.titles[item] or catalog.item_ids[item]


def _lines(sample: Sample) -> Iterator[str]:
    names = list(sample.completions[0].components) if sample.completions else []
    thinks = any(row.thinking for row in sample.completions)
    yield f"**history** {' -> '.join(map(_plain, sample.history))}  "
    yield f"**target** {_plain(sample.target)} ({_codes(sample.target_codes)})"
    yield ""
    heads = ["item", *["thinking"] * thinks, "drawn", "SID", "log-prob", "reward", *names, "advantage of each step"]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in sample.completions:
        parts = [f"{row.components[name]:.2f}" for name in names]
        pushed = " ".join(f"{value:+.2f}" for value in row.advantages)
        about = [_plain(row.item), *[" / ".join(map(_plain, row.thinking))] * thinks, str(row.drawn), _codes(row.codes)]
        shown = [*about, f"{row.log_prob:.2f}", f"{row.reward:.2f}", *parts, pushed]
        yield f"| {' | '.join(shown)} |"
    yield ""


def _codes(codes: Sequence[int]) -> str:
    return " ".join(str(code) for code in codes)


def _plain(text: str) -> str:
    """A text as Markdown that shows it as it is, in one line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
