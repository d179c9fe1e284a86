"""What a thought tells of the item that the user chose: how much likelier it makes that item."""

from dataclasses import replace

import torch
from torch import Tensor

from genrl.batches import Completions, Requests
from genrl.errors import ConfigError
from genrl.layouts.base import Layout
from genrl.ops import segment_sum
from genrl.policy.distribution import Sampling
from genrl.policy.protocol import Generative
from genrl.policy.score import score
from genrl.policy.write import completed, targets_as_completions, write


def tells(layout: Layout) -> bool:
    """Whether completions have all their text before the one item that they name."""
    return layout.writes_text and not layout.writes_between and layout.items == 1


def check_tells(layout: Layout, asking: str) -> None:
    """Refuse a layout whose text cannot be judged by the item behind it.

    Raises:
        ConfigError: naming what asks for it.
    """
    if not tells(layout):
        raise ConfigError(
            f"{asking} compares one item behind a whole thought and without it, and this layout writes between the "
            f"tokens of its item or has no text. Use layout=blocked with layout.order=tail, or leave it out."
        )


@torch.no_grad()
def information(policy: Generative, layout: Layout, requests: Requests, completions: Completions) -> Tensor:
    """How much likelier text makes the target, for each step [B, S], in nats.

    It is log p(target | history, text) - log p(target | history).

    Both are probabilities of the first target's SID codes over the codes that may follow, at temperature 1, so that
    values add up over the steps to those of the item. -inf where a text failed, since no item follows on it.

    Args:
        policy: that wrote them, or any other.
        layout: that they were written under; see `tells`.
        requests: P, with targets.
        completions: G for each of them.
    """
    gold = targets_as_completions(layout.plain, requests)
    plain = score(policy, layout.plain, requests, gold).logps
    told, levels = behind_text(layout, completions, gold)
    without = plain.repeat_interleave(completions.group_size, 0).gather(1, levels)
    gained = (score(policy, layout, requests, told).logps - without).masked_fill(~told.chosen, 0.0)
    failed = (completions.items < 0).any(1, keepdim=True)
    return segment_sum(gained, told.step_ids, told.num_steps).masked_fill(failed, float("-inf"))


def informed(
    policy: Generative, layout: Layout, requests: Requests, completions: Completions, count: int
) -> Completions:
    """The completions with `information`, of the first `count` of each group; that of the others is not a number.

    With a count of 0 nothing is asked.
    """
    if not count:
        return completions
    size = completions.group_size
    some = torch.arange(len(completions.tokens), device=completions.tokens.device).view(-1, size)[:, :count].flatten()
    judged = replace(replace(completions, group_size=1).rows(some), group_size=min(count, size))
    values = torch.full_like(completions.codes, float("nan"), dtype=torch.float32)
    values[some] = information(policy, layout, requests, judged).to(values.dtype)
    return replace(completions, information=values)


def greedy_information(policy: Generative, layout: Layout, requests: Requests) -> Tensor:
    """Information [P] of the text of the likeliest words."""
    return information(policy, layout, requests, write(policy, layout, requests, 1)).sum(1)


def behind_text(layout: Layout, completions: Completions, gold: Completions) -> tuple[Completions, Tensor]:
    """Completions with other items in the place of their own, of which alone the tokens are chosen.

    Args:
        layout: that the completions were written under.
        completions: G for each of P requests.
        gold: one per request, the item alone.

    Returns:
        The completions, and for each of their tokens its place in `gold` [B, T]; 0 where it is of no item.
    """
    at = completions.item_mask
    levels = torch.where(at, at.long().cumsum(1) - 1, 0)
    own, free = (
        value.repeat_interleave(completions.group_size, 0).gather(1, levels) for value in (gold.tokens, gold.chosen)
    )
    tokens = torch.where(at, own, completions.tokens)
    nothing = torch.zeros_like(completions.logps)
    choices = 2 * (at & free).long()
    states = layout.replay(tokens)
    told = completed(layout, completions.group_size, tokens, states, choices, nothing, nothing, Sampling())
    return told, levels
