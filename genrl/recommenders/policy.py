"""A policy as a recommender: its rankings, and how its weights are to be decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.config.schema import EvaluateConfig
from genrl.errors import CheckpointError
from genrl.files import key_of, read_metadata
from genrl.layouts.base import Layout
from genrl.metrics.functional import exclude_history
from genrl.ops import seed_of
from genrl.policy.distribution import RANKING
from genrl.policy.model import Policy
from genrl.policy.search import search, think
from genrl.prompts.prompts import PromptMaker


def decoding(policy: Policy, layout: Layout, maker: PromptMaker, config: EvaluateConfig) -> dict[str, Any]:
    """All that rankings depend on besides weights, data and SID table.

    Args:
        policy: gives the tokens that prompts and completions are made of.
        layout: grammar that the weights were trained with.
        maker: makes the prompts.
        config: how they are searched.

    Returns:
        `layout`: name and options; `template`: token ids around the items;
        `template_hash`: of these; `search`: options that may be chosen anew at each evaluation.
    """
    options = getattr(layout, "config", None)
    template: dict[str, Any] = {
        "start": policy.start_id,
        "prefix": list(policy.prefix_ids),
        "first_sid_tokens": list(policy.first_ids),
        "codes": list(policy.sizes),
    }
    search: dict[str, Any] = {"evaluate.beam": config.beam, "data.max_history": maker.max_history}
    if layout.writes_text and policy.words is not None:
        words = policy.words
        template |= {"think": words.opening, "end_of_think": words.closing, "line_break": words.line_break}
        search["evaluate.thinking_samples"] = config.thinking_samples
        search["evaluate.thinking_temperature"] = config.thinking_temperature
    return {
        "layout": {
            "name": type(layout).__name__.removesuffix("Layout").lower(),
            **(asdict(options) if is_dataclass(options) and not isinstance(options, type) else {}),
        },
        "template": template,
        "template_hash": key_of(template),
        "search": search,
    }


def check_decoding(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Refuse weights that were trained with another layout or prompt template.

    Weights of versions that did not write it down pass, and so do options that one of the two sides does not know.

    Args:
        path: file of the weights.
        now: what `decoding` says of the policy that is to hold them.

    Returns:
        What is searched in another way than the weights were chosen with, a line for each option.

    Raises:
        CheckpointError: naming everything that differs.
    """
    text = read_metadata(path).get("decoding")
    if text is None:
        return []
    saved = json.loads(text)
    wrong = [
        f"{section}.{name} is {before!r} there and {value!r} here"
        for section in ("layout", "template")
        for name, before, value in _differences(saved.get(section, {}), now[section])
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: these weights are to be decoded in another way: {'; '.join(wrong)}. Use the configuration that "
            f"they were trained with (config.yaml in the run folder) and leave its layout, prompt and data as they are."
        )
    return [
        f"{name}={value}; the weights were chosen with {before}"
        for name, before, value in _differences(saved.get("search", {}), now["search"])
    ]


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, saved value and present value of the options that both have and that differ."""
    plain = json.loads(json.dumps(now))
    return [(name, saved[name], plain[name]) for name in plain if name in saved and saved[name] != plain[name]]


def rankings(policy: Policy, layout: Layout, prompts: Requests, config: EvaluateConfig) -> dict[str, Ranking]:
    """Rankings of the whole catalogue, `raw` and with each user's history `excluded`, behind the same thinking."""
    noise = thinking_noise(layout, prompts, config)
    sampling = replace(RANKING, thinking_temperature=config.thinking_temperature)
    behind = think(policy, layout, prompts, sampling, noise)
    find = partial(search, policy, layout, width=config.beam, sampling=sampling, noise=noise, behind=behind)
    if not config.exact:
        raw, _ = find(prompts)
        return {"raw": raw, "excluded": exclude_history(raw, prompts.history)}
    first = max(config.k)
    unseen, _ = find(replace(prompts, deny=deniable(prompts.history, len(layout.codes))), exact=first)
    raw, _ = find(prompts, exact=first)
    return {"raw": raw, "excluded": exclude_history(unseen, prompts.history)}


def thinking_noise(layout: Layout, prompts: Requests, config: EvaluateConfig) -> Tensor | None:
    """Noise [P, samples, longest completion] in [0, 1) that thinking is drawn with; None for the likeliest words.

    The seed of a prompt is a number made of its tokens, so its noise depends neither on the batch that it is in nor on
    the number of processes, and `recommend` thinks as `evaluate` did.
    """
    if config.thinking_samples == 0 or not layout.writes_text:
        return None
    shape = (config.thinking_samples, layout.length)
    seeds = [seed_of(*row[real].tolist()) for row, real in zip(prompts.tokens.cpu(), prompts.mask.cpu(), strict=True)]
    noise = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(prompts.tokens.device)


def deniable(history: Tensor, items: int) -> Tensor:
    """Histories [P, H] as filters: nothing is denied to a user who has seen all items, as nothing would be left."""
    seen = history.sort(dim=1).values
    distinct = ((seen.diff(dim=1, prepend=torch.full_like(seen[:, :1], -1)) != 0) & (seen >= 0)).sum(1)
    return history.masked_fill((distinct >= items)[:, None], -1)
