"""From requests to completions by any of the rollout methods, with noise that depends on the request alone."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Completions, Requests
from genrl.config.schema import RolloutConfig
from genrl.errors import ConfigError
from genrl.layouts.base import Layout
from genrl.ops import sent
from genrl.policy.distribution import Sampling
from genrl.policy.protocol import Generative
from genrl.policy.search import search
from genrl.policy.write import open_choices, targets_as_completions, write


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
    check_method(config, thinking=layout.writes_text)
    if config.method != "sample" and config.group_size > layout.completions:
        raise ConfigError(
            f"rollout.method={config.method} draws group_size={config.group_size} distinct items, but the catalogue "
            f"has {layout.completions} distinct SIDs. Lower rollout.group_size or use rollout.method=sample."
        )


def sampling_of(config: RolloutConfig) -> Sampling:
    """How a rollout draws its tokens, which is how they are scored."""
    return Sampling(config.temperature, config.thinking_temperature, config.normalize)


def rollout(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    config: RolloutConfig,
    *,
    generator: torch.Generator,
    rows: slice,
    total: int,
    categories: Tensor,
) -> Completions:
    """Draw `group_size` completions for each request.

    Args:
        policy: the sampling policy, in eval mode.
        layout: grammar of the completions.
        requests: this rank's requests.
        config: method, group size, temperature, normalisation.
        generator: CPU generator; draws the noise of the whole rollout on every rank, so completions do not depend on
            how many ranks share it.
        rows: this rank's part of the rollout's requests.
        total: requests of the rollout over all ranks.
        categories: [I] category of each catalogue row.
    """
    device, group, sampling = requests.tokens.device, config.group_size, sampling_of(config)
    if config.method == "sample":
        noise = torch.rand(total, group, layout.length, generator=generator)[rows]
        noise = sent(noise, device)
        return categorised(write(policy, layout, requests, group, sampling, noise), categories)
    gumbels = None
    if config.method == "gumbel":
        noise = torch.rand(total, layout.length, group, layout.widest, generator=generator)[rows]
        gumbels = sent(-(-noise.clamp(min=1e-20).log()).log(), device)
    _, drawn = search(policy, layout, requests, group, sampling, gumbels=gumbels)
    return categorised(drawn, categories)


def target_rollout(layout: Layout, requests: Requests, categories: Tensor) -> Completions:
    """The targets themselves as completions, one per request: what plain cross-entropy trains on."""
    return categorised(targets_as_completions(layout, requests), categories)


def targets_behind_text(
    policy: Generative,
    layout: Layout,
    requests: Requests,
    config: RolloutConfig,
    **shared: Any,  # noqa: ANN401 (handed on as they are)
) -> Completions:
    """The targets as completions behind text that the policy writes itself, `group_size` for each request.

    A `rollout` (arguments as there) in which every request may get its target alone. From the same noise come the same
    words as in any other rollout, up to the first code; words between codes stand behind the target's codes. Text that
    fails has no item behind it. `chosen` are the words that the policy chose, and the codes that have an alternative
    in the whole catalogue; the latter have `logps` and `entropy` 0, because they were not drawn.
    """
    alone = replace(requests, pool=requests.wanted.items[:, :1], deny=None)
    drawn = rollout(policy, layout, alone, config, **shared)
    assert drawn.states is not None
    at = drawn.item_mask
    chosen = torch.where(at, open_choices(layout, drawn.states) > 1, drawn.chosen)
    assert drawn.entropy is not None
    logps, entropy = (values.masked_fill(at, 0.0) for values in (drawn.logps, drawn.entropy))
    return replace(drawn, chosen=chosen, logps=logps, entropy=entropy)


def given_text(completions: Completions) -> Completions:
    """The completions with their text as something given: tokens of items alone are chosen."""
    chosen = completions.chosen & completions.item_mask
    return replace(completions, chosen=chosen, logps=completions.logps.masked_fill(~chosen, 0.0))


def categorised(completions: Completions, categories: Tensor) -> Completions:
    """Completions with the category [I] of each of their items."""
    known = categories[completions.items.clamp(min=0)]
    return replace(completions, categories=torch.where(completions.items < 0, -1, known))
