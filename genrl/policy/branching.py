"""How completions share the computation of their prompt: three ways, and a cost model that picks one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from genrl.errors import ConfigError, UnsupportedError
from genrl.policy.model import Policy, states
from genrl.policy.tree import branch_mask, prompt_positions

WAYS = ("tree", "expand", "naive")
"""`tree`: all completions of a prompt in one row behind it, kept apart by a mask. `expand`: the prompt's keys and
values are computed once and copied to a row per completion. `naive`: each completion in a row of its own behind a copy
of its prompt; the reference that the others must equal, and the way of models that the others do not fit."""

PAIR = 1.6
"""Cost of one multiply-add inside attention, in multiply-adds of a weight matrix."""
COPY = 24.0
"""Cost of one number copied into or inside a cache, in the same unit. Both were set by hand so that the cheapest way
is the one measured fastest on a CPU (`python tools/bench.py --only ways`); docs/performance.md has the table."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch of completions."""

    prompts: int
    group: int
    context: int
    """Tokens of the longest prompt."""
    depth: int
    """Tokens per completion that go through the model (its last one need not)."""


def cost(way: str, shape: Shape, policy: Policy, *, decode: bool) -> float:
    """Estimated work in multiply-adds of weight matrices.

    Args:
        way: one of `WAYS`.
        shape: sizes of the batch.
        policy: gives the work per token, per pair of tokens in attention and per cached token.
        decode: token after token with a cache (sampling, beams) instead of all at once (scoring).
    """
    p, g, length, depth = shape.prompts, shape.group, shape.context, shape.depth
    steps = range(1, depth + 1)
    if decode:
        tokens, pairs, copies = {
            "tree": (
                p * (length + g * depth),
                p * length**2 + p * g * sum(length + g * t for t in steps),
                p * sum(length + g * t for t in steps),
            ),
            "expand": (
                p * (length + g * depth),
                p * length**2 + p * g * sum(length + t for t in steps),
                p * g * (length + sum(length + t for t in steps)),
            ),
            "naive": (
                p * length + p * g * sum(length + t for t in steps),
                p * length**2 + p * g * sum((length + t) ** 2 for t in steps),
                0,
            ),
        }[way]
    else:
        tokens, pairs, copies = {
            "tree": (p * (length + g * depth), p * (length + g * depth) ** 2, 0),
            "expand": (
                p * (length + g * depth),
                p * length**2 + p * g * depth * (length + depth),
                2 * p * g * (length + depth),
            ),
            "naive": (p * g * (length + depth), p * g * (length + depth) ** 2, 0),
        }[way]
    work = policy.work
    return tokens * work.token + PAIR * pairs * work.pair + COPY * copies * work.cached


def choose(policy: Policy, shape: Shape, *, decode: bool, ways: tuple[str, ...] = WAYS) -> str:
    """The way to compute a batch: the one that `policy.branching` names, or the cheapest one that the model allows.

    Args:
        policy: says what its layers can do.
        shape: sizes of the batch.
        decode: token after token with a cache.
        ways: those that there are; one that is asked for and not among them gives way to the cheapest of these.

    Raises:
        ConfigError: if prompt and completion are longer than the model's positions.
        UnsupportedError: if the way that was asked for would give wrong results with this model.
    """
    longest = shape.context + shape.depth
    if policy.positions is not None and longest > policy.positions:
        raise ConfigError(
            f"a prompt of {shape.context} tokens with {shape.depth} more does not fit into the {policy.positions} "
            f"positions of model {type(policy.base).__name__}. Lower data.max_history."
        )
    if policy.branching == "naive":
        return "naive"
    refused = wrong_ways(policy, longest)
    if policy.checkpointing:
        cached = ("tree", "expand") if decode else ("expand",)
        refused |= dict.fromkeys(cached, "activation checkpointing drops the cache that it needs")
    if policy.branching == "auto" or policy.branching not in ways:
        return min((way for way in ways if way not in refused), key=lambda way: cost(way, shape, policy, decode=decode))
    if policy.branching in refused:
        raise UnsupportedError(
            f"trainer.branching={policy.branching} is wrong for this model: {refused[policy.branching]}. "
            f"Use trainer.branching=auto, which takes the fastest way that is right."
        )
    return policy.branching


def wrong_ways(policy: Policy, longest: int) -> dict[str, str]:
    """Ways that a model does not compute rightly for sequences of `longest` tokens, with the reason."""
    if policy.device not in policy.refused_ways:
        policy.refused_ways[policy.device] = _probe(policy)
    refused = dict(policy.refused_ways[policy.device])
    if policy.window is not None and longest > policy.window:
        refused.setdefault("tree", f"its layers see {policy.window} tokens and the sequence has {longest}")
    for way, reason in refused.items():
        if policy.branching == "auto" and way not in policy.noticed:
            policy.noticed.add(way)
            warnings.warn(f"{type(policy.base).__name__} is run without the way {way!r}: {reason}.", stacklevel=2)
    return refused


@torch.no_grad()
def _probe(policy: Policy) -> dict[str, str]:
    """Run two short completions in every way; those that differ from plain rows are refused."""
    length, depth = 3, 2
    tokens = (
        torch.arange(length + 2 * depth, device=policy.device)[None] % policy.base.config.get_text_config().vocab_size
    )
    prompt, branches = tokens[:, :length], tokens[0, length:].view(2, depth)
    seen = torch.ones(2, length + depth, dtype=torch.bool, device=policy.device)
    positions = prompt_positions(seen)

    def naive() -> Tensor:
        return policy(torch.cat([prompt.expand(2, -1), branches], dim=1), seen, positions, states)[:, length:]

    def tree() -> Tensor:
        place = torch.arange(depth, device=policy.device).repeat(2)[None]
        branch = torch.arange(2, device=policy.device).repeat_interleave(depth)[None]
        mask = branch_mask(seen[:1, :length], branch, place)
        places = torch.cat([positions[:1, :length], length + place], dim=1)
        return policy(tokens, mask, places, states)[0, length:]

    def expand() -> Tensor:
        cache = DynamicCache(config=policy.base.config.get_text_config())
        policy(prompt, seen[:1, :length], positions[:1, :length], states, cache=cache)
        cache.batch_repeat_interleave(2)
        return policy(branches, seen, positions[:, length:], states, cache=cache)

    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    with torch.autocast(policy.device.type, enabled=False):
        wanted = naive()
        refused = {}
        for way in (tree, expand):
            reason = _difference(way, wanted)
            if reason:
                refused[way.__name__] = reason
    for module, training in modes.items():
        module.training = training
    return refused


def _difference(way: Callable[[], Tensor], wanted: Tensor) -> str:
    """Why a way is not right for a model; empty if it is."""
    try:
        found = way().reshape(wanted.shape)
    except Exception as error:  # whatever a foreign architecture answers to a mask or a cache that it does not know
        return f"its layers refuse it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    relative = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    tolerance = 1e-3 if wanted.dtype in (torch.float32, torch.float64) else 5e-2
    return "" if relative <= tolerance else f"its layers do not keep completions apart (relative error {relative:.2g})"
