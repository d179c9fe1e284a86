"""What one request of a trained policy costs: tokens, multiply-adds and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from genrl.batches import Requests
from genrl.config.schema import EvaluateConfig
from genrl.policy.model import Policy
from genrl.recommenders.searching import rankings
from genrl.runs.session import Session

TIMED, COUNTED = 24, 8
"""Requests whose time is taken, and whose work is counted, which takes long."""


@dataclass(frozen=True)
class Work:
    """Means over some requests."""

    tokens: float
    """Tokens that go through the model: of the prompt, of thinking and of all beams."""
    multiply_adds: float
    """In matrix products and attention; attention is counted as if every token saw all others."""


def requests(session: Session, count: int) -> list[Requests]:
    """Test rows, each a batch of its own, spread evenly over all of them."""
    rows = session.batches("test").positions
    chosen = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
    return [session.maker.at(position[None]).to(str(session.policy.device)) for position in chosen]


def work(session: Session, beam: int | None = None) -> Work:
    """What ranking the catalogue for one request takes, with the configured beam or another, counted as it is done."""
    prompts = requests(session, COUNTED)
    config = replace(session.config.evaluate, exact=False)
    config = config if beam is None else replace(config, beam=beam)
    _request(session, prompts[0], config)  # the first one tries what the model can do
    # PyTorch counts the attention kernels of GPUs alone.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with (
        _tokens_through(cast(Policy, session.policy).decoder) as tokens,
        FlopCounterMode(display=False, custom_mapping=mapping) as f,
    ):
        for prompt in prompts:
            _request(session, prompt, config)
    return Work(sum(tokens) / len(prompts), f.get_total_flops() / 2 / len(prompts))


def widest_beam(session: Session, multiply_adds: float) -> int:
    """The widest beam whose requests take no more multiply-adds: from the configured one to the whole catalogue."""
    low, high = session.config.evaluate.beam, session.layout.completions
    while low < high:
        middle = (low + high + 1) // 2
        if work(session, middle).multiply_adds <= multiply_adds:
            low = middle
        else:
            high = middle - 1
    return low


def milliseconds(sessions: Mapping[str, Session]) -> dict[str, float]:
    """Median time of a request of each policy, one request at a time, the policies in turn in this process."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    prompts = {name: requests(session, TIMED) for name, session in sessions.items()}
    for number in range(-1, min(map(len, prompts.values()))):
        for name, session in sessions.items():
            started = time.perf_counter()
            _request(session, prompts[name][max(number, 0)], replace(session.config.evaluate, exact=False))
            if number >= 0:  # the first one warms up
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def _request(session: Session, prompt: Requests, config: EvaluateConfig) -> None:
    session.policy.eval()
    with session.numerics():
        found = rankings(session.policy, session.layout.to(str(session.policy.device)), prompt, config)
        found["raw"].items.cpu()  # GPUs run ahead


@contextmanager
def _tokens_through(decoder: nn.Module) -> Iterator[list[int]]:
    """Numbers of tokens of the passes through a model."""
    found: list[int] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        found.append(options["input_ids"].numel())

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _attention(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:  # noqa: ANN401
    """Operations of one attention, from shapes."""
    return int(sdpa_flop_count(query, key, value))
