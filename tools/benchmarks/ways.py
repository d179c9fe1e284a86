"""Whether the cost model picks the fastest way to share a prompt, for many shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.checks import TOLERANCE, require
from benchmarks.figures import Figure, compare, interleave, timed
from benchmarks.inputs import FULL, Sizes, make_policy
from genrl.batches import Requests
from genrl.policy.model import Policy
from genrl.policy.share import WAYS, Shape, choose, follow, grow

SHAPES = (
    (32, 16, 60, 4),
    (8, 16, 60, 16),
    (4, 16, 60, 64),
    (8, 64, 60, 4),
    (4, 4, 60, 32),
    (8, 16, 256, 4),
    (4, 16, 256, 16),
    (2, 16, 256, 64),
    (2, 16, 1024, 4),
    (1, 16, 1024, 16),
    (1, 16, 1024, 200),
)
"""Prompts, completions each, tokens of a prompt, tokens of a completion."""
QUICK_SHAPES = ((2, 4, 20, 4), (1, 2, 8, 12))
NAIVE_UP_TO = 16
"""Longest completion that is decoded without a cache, which computes everything anew for each token."""


def ways(sizes: Sizes, repeats: int) -> list[Figure]:
    """Times of the way that the cost model picks and of the fastest other one, decoding and scoring with gradient."""
    policy = make_policy(sizes)
    found = []
    for shape in SHAPES if sizes is FULL else QUICK_SHAPES:
        tokens, some = _random(policy, shape), WAYS if shape[3] <= NAIVE_UP_TO else WAYS[:2]
        found.append(_figure(policy, "score", shape, WAYS, partial(_score, policy, *tokens), repeats))
        found.append(_figure(policy, "decode", shape, some, partial(_decode, policy, *tokens), repeats))
    return found


def _figure(
    policy: Policy,
    what: str,
    shape: tuple[int, int, int, int],
    candidates: tuple[str, ...],
    run: Callable[[str], Tensor],
    repeats: int,
) -> Figure:
    prompts, group, context, length = shape
    picked = choose(policy, Shape(prompts, group, context, length - 1), decode=what == "decode")
    wanted = run(candidates[-1])
    apart = max(float((run(way) - wanted).abs().max() / wanted.abs().max()) for way in candidates)
    require(apart <= TOLERANCE, f"ways: hidden states differ by {apart:.2g} of the largest.")
    name = f"{what} {prompts} x {group}, {context} + {length} tokens"
    seconds = interleave(f"ways, {name}", {way: timed(partial(run, way)) for way in candidates}, repeats)
    rest = [way for way in candidates if way != picked]
    best = min(rest, key=lambda way: sorted(seconds[way])[len(seconds[way]) // 2])
    checked = "hidden states of all ways are equal"
    return compare("ways", f"{name}: {picked}, else {best}", seconds[picked], seconds[best], checked=checked)


def _random(policy: Policy, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Random prompts [P, L] and completions [P, G, T]."""
    prompts, group, context, length = shape
    generator = torch.Generator().manual_seed(0)
    high = policy.base.config.vocab_size
    return (
        torch.randint(high, (prompts, context), generator=generator),
        torch.randint(high, (prompts, group, length), generator=generator),
    )


def _score(policy: Policy, prompts: Tensor, completions: Tensor, way: str) -> Tensor:
    """Hidden states of all completions, after a backward pass through their sum."""
    count, group, length = completions.shape
    tokens = completions.flatten(0, 1)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    requests = Requests(prompts, torch.ones_like(prompts, dtype=torch.bool), prompts[:, :0])
    policy.branching = way
    first, inner = follow(policy, requests, tokens, everything, lambda first, inner: (first.states, inner.states))
    (first.sum() + inner.sum()).backward()
    policy.zero_grad(set_to_none=True)
    policy.branching = "auto"
    return inner.detach().view(count, group, length - 1, -1)


@torch.no_grad()
def _decode(policy: Policy, prompts: Tensor, completions: Tensor, way: str) -> Tensor:
    """Hidden states [P, G, H] behind the last token that goes through the model."""
    _, group, length = completions.shape
    policy.branching = way
    requests = Requests(prompts, torch.ones_like(prompts, dtype=torch.bool), prompts[:, :0])
    growth = grow(policy, requests, group, length - 1)
    hidden = growth.begin(lambda said: said.states)
    for tokens in completions[:, :, :-1].unbind(2):
        hidden = growth.extend(tokens, lambda said: said.states)
    policy.branching = "auto"
    return hidden
