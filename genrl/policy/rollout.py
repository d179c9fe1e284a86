"""From prompts to a Completions by any of the rollout methods, with noise that depends on the prompt alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genrl.batches import Completions, Requests
from genrl.config.schema import RolloutConfig
from genrl.errors import ConfigError
from genrl.layouts.base import Layout, ThinkingLayout
from genrl.policy.decode import Drawn, beam, sample
from genrl.policy.model import Policy
from genrl.policy.writing import sample_thinking


def check_method(config: RolloutConfig, *, thinking: bool) -> None:
    """Refuse a search over completions with thinking.

    Raises:
        ConfigError: naming what may be used instead.
    """
    if config.method != "sample" and thinking:
        raise ConfigError(
            f"rollout.method={config.method} searches over SID tokens alone, and this layout has thinking before them. "
            f"Use rollout.method=sample, or layout=sid."
        )


def check_rollout(config: RolloutConfig, layout: Layout) -> None:
    """Refuse a search over completions with thinking, and a group of distinct items larger than the catalogue.

    Raises:
        ConfigError: naming both numbers.
    """
    check_method(config, thinking=layout.thinking)
    if config.method != "sample" and config.group_size > layout.completions:
        raise ConfigError(
            f"rollout.method={config.method} draws group_size={config.group_size} distinct items, but the catalogue "
            f"has {layout.completions} distinct SIDs. Lower rollout.group_size or use rollout.method=sample."
        )


def rollout(
    policy: Policy,
    layout: Layout,
    prompts: Requests,
    config: RolloutConfig,
    *,
    generator: torch.Generator,
    rows: slice,
    total: int,
    categories: Tensor,
) -> Completions:
    """Draw `group_size` completions for each prompt.

    Args:
        policy: the sampling policy, in eval mode.
        layout: grammar of the completions.
        prompts: this rank's prompts.
        config: method, group size, temperature, normalisation.
        generator: CPU generator; draws the noise of the whole rollout on every rank, so completions do not depend on
            how many ranks share it.
        rows: this rank's part of the rollout's prompts.
        total: prompts of the rollout over all ranks.
        categories: [I] category of each catalogue row.
    """
    device = prompts.tokens.device
    shared: dict[str, Any] = {"temperature": config.temperature, "normalize": config.normalize}
    if config.method == "sample":
        noise = torch.rand(total, config.group_size, layout.length, generator=generator)[rows].to(device)
        if isinstance(layout, ThinkingLayout):
            shared["thinking_temperature"] = config.thinking_temperature
            drawn = sample_thinking(policy, layout, prompts.tokens, prompts.mask, noise, **shared)
        else:
            drawn = sample(policy, layout, prompts.tokens, prompts.mask, noise, **shared)
    else:
        gumbels = None
        if config.method == "gumbel":
            noise = torch.rand(total, layout.length, config.group_size, layout.widest, generator=generator)[rows]
            gumbels = -(-noise.clamp(min=1e-20).log()).log().to(device)
        drawn = beam(policy, layout, prompts.tokens, prompts.mask, config.group_size, gumbels=gumbels, **shared)
    return to_rollout(drawn, layout, prompts, config.normalize, categories)


def to_rollout(drawn: Drawn, layout: Layout, prompts: Requests, normalize: str, categories: Tensor) -> Completions:
    """Completions with all that credit and scoring need: steps, choices, items, categories."""
    group = drawn.tokens.shape[1]
    tokens, support = drawn.tokens.flatten(0, 1), drawn.support.flatten(0, 1)
    decoded = layout.decode(tokens)
    choices = drawn.choices.flatten(0, 1)
    # a token with one legal value is forced: log-probability 0, nothing to learn; 0 stands where nothing is chosen
    mask = choices > (1 if normalize == "legal" else 0)
    return Completions(
        tokens=tokens,
        chosen=mask,
        step_ids=layout.step_ids(support).contiguous(),
        item_ids=layout.item_mask(support).long() - 1,
        support=support,
        codes=decoded.codes,
        items=decoded.items,
        logps=drawn.logps.flatten(0, 1).masked_fill(~mask, 0.0),
        group_size=group,
        num_steps=layout.num_steps,
        entropy=drawn.entropy.flatten(0, 1).masked_fill(~mask, 0.0),
        categories=torch.where(decoded.items < 0, -1, categories[decoded.items.clamp(min=0)]),
        closed=layout.closed(tokens, support) if isinstance(layout, ThinkingLayout) else None,
    )


def target_rollout(layout: Layout, prompts: Requests, categories: Tensor) -> Completions:
    """The targets themselves as completions, one per prompt: what plain cross-entropy trains on."""
    tokens = layout.render(prompts.wanted.items[:, 0])
    states = layout.start(len(prompts))
    support, choices = [], []
    for position in range(layout.length):
        support.append(states)
        choices.append(layout.legal(position, states).mask.sum(1))
        states = layout.advance(position, states, tokens[:, position])
    zeros = torch.zeros_like(tokens, dtype=torch.float32)
    drawn = Drawn(
        tokens=tokens[:, None],
        support=torch.stack(support, dim=1)[:, None],
        logps=zeros[:, None],
        entropy=zeros[:, None],
        choices=torch.stack(choices, dim=1)[:, None],
        leaves=states[:, None],
        scores=zeros.sum(1)[:, None],
        bound=zeros.sum(1),
    )
    return to_rollout(drawn, layout, prompts, "legal", categories)
