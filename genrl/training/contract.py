"""How weights are to be decoded, kept in the header of their file: layout, prompt template and search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from genrl.config.schema import EvaluateConfig
from genrl.errors import CheckpointError
from genrl.layouts.base import Layout
from genrl.policy.model import Policy
from genrl.prompts.template import PromptMaker
from genrl.training.folder import key_of, read_metadata


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
    if layout.thinking and policy.words is not None:
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
