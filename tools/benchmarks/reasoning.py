"""Rollouts and updates of completions with thinking, against `transformers.generate` and TRL's update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.checks import TOLERANCE, expected_frequencies, gradient, require, same_updates
from benchmarks.figures import Figure, compare, interleave, timed
from benchmarks.inputs import BLOCKS, Inputs, Sizes, make_thinking_inputs
from benchmarks.peers import generate_thinking, repeated_log_probs
from genrl.batches import Completions
from genrl.layouts.blocked import BlockedLayout
from genrl.policy.distribution import Sampling
from genrl.policy.score import score

GOAL = 3.0
MICRO_BATCH = 64
"""Rows that the peer's update computes at a time; more at once was slower and takes more memory."""


def thinking_rollouts(sizes: Sizes, repeats: int) -> list[Figure]:
    """Three think blocks before a SID of three tokens: seconds of a rollout, and its cost per generated token."""
    inputs, group = make_thinking_inputs(sizes), sizes.groups[0]
    drawn: dict[str, list[Tensor]] = {"genrl": [], "transformers": []}
    seeds = iter(range(repeats + 2))
    makers: dict[str, Callable[[], Tensor]] = {
        "genrl": lambda: inputs.draw(group, next(seeds)).tokens,
        "transformers": partial(generate_thinking, inputs.policy.model, inputs.prompts, group, inputs.layout),
    }

    def measured(who: str) -> float:
        started = time.perf_counter()
        tokens = makers[who]()
        seconds = time.perf_counter() - started
        drawn[who].append(tokens)
        return seconds

    torch.manual_seed(0)
    seconds = interleave("reasoning", {who: partial(measured, who) for who in makers}, repeats)
    lengths = {who: [_lengths(inputs.layout, tokens) for tokens in rounds[-repeats:]] for who, rounds in drawn.items()}
    checked = _same_completions(inputs, drawn, lengths)
    per_token = {
        who: [1e6 * one / int(own.sum()) for one, own in zip(seconds[who], lengths[who], strict=True)] for who in makers
    }
    rates = [f"{1e6 / median(per_token[who]):,.0f} tokens/s" for who in makers]
    work = {who: [_work(inputs, who, own) / 1e6 for own in lengths[who]] for who in makers}
    config, prompt = inputs.layout.config, inputs.prompts.tokens.shape[1]
    name = f"group {group}, {prompt} + {BLOCKS} x {config.budget} tokens"
    figure = partial(compare, "reasoning", checked=f"{checked}; {rates[0]} against {rates[1]}")
    peers = [("s", seconds, f"{name}, transformers", GOAL), ("us", per_token, f"{name}, per generated token", None)]
    peers.append(("million multiply-adds", work, f"{name}, per generated token", None))
    return [figure(what, of["genrl"], of["transformers"], unit=unit, goal=goal) for unit, of, what, goal in peers]


def _lengths(layout: BlockedLayout, tokens: Tensor) -> Tensor:
    """Tokens [B] of completions [B, T] up to their ends."""
    return (layout.replay(tokens).site >= 0).sum(1)


def _same_completions(
    inputs: Inputs[BlockedLayout], drawn: dict[str, list[Tensor]], lengths: dict[str, list[Tensor]]
) -> str:
    """Both follow the grammar, words are as frequent as they should be, and completions are equally long."""
    policy, layout, prompts = inputs.policy, inputs.layout, inputs.prompts
    opening = torch.full_like(prompts.tokens[:, :1], layout.words.opening)
    with torch.no_grad():
        logits = policy.model(torch.cat([prompts.tokens, opening], dim=1)).logits[:, -1].float()
    legal = torch.zeros_like(logits, dtype=torch.bool)
    legal[:, : len(layout.words.legal)] = layout.words.legal
    chances = logits.masked_fill(~legal, float("-inf")).softmax(-1)
    for who, rounds in drawn.items():
        for tokens in rounds:
            missing = int((layout.read(tokens, layout.replay(tokens)).items < 0).sum())
            require(missing == 0, f"{who}: {missing} of {len(tokens)} completions are no item.")
        expected_frequencies(chances, rounds[-1][:, 1], who)
    own, other = (torch.cat(lengths[who]).double() for who in ("genrl", "transformers"))
    apart, error = float(own.mean() - other.mean()), math.sqrt(float(own.var() / len(own) + other.var() / len(other)))
    require(
        abs(apart) <= 5 * error, f"completions differ in length by {apart:.1f} tokens, with an error of {error:.1f}."
    )
    batch = inputs.draw(inputs.sizes.groups[0]).groups(slice(0, 1))
    policy.branching = "naive"
    with torch.no_grad():
        logps = score(policy, layout, prompts.rows(slice(0, 1)), batch).logps
    policy.branching = "auto"
    gap = float((logps - batch.logps).abs().max())
    require(gap <= TOLERANCE, f"log-probabilities differ by {gap:.2g} from those of plain forward passes.")
    spread = ", ".join(f"{float(own.quantile(share)):.0f}" for share in (0.1, 0.5, 0.9))
    return f"all samples are items; equally long (10%, 50%, 90%: {spread} tokens); log-probs equal to {gap:.0e}"


def _work(inputs: Inputs[BlockedLayout], who: str, lengths: Tensor) -> float:
    """Multiply-adds per generated token of rows [B], which go on to the end of the longest in transformers."""
    own, head = inputs.policy.work, inputs.policy.base.get_output_embeddings()
    prompt, generated = inputs.prompts.tokens.shape[1], float(lengths.sum())
    prompts = len(inputs.prompts) if who == "genrl" else len(lengths)
    if who != "genrl":
        lengths = lengths.max().expand(prompts)
    written = (lengths - 1).double()
    tokens = prompts * prompt + float(written.sum())
    pairs = prompts * prompt**2 / 2 + float((written * prompt + written**2 / 2).sum())
    logits = float(lengths.sum()) * head.in_features * head.out_features
    return (tokens * own.token + pairs * own.pair + logits) / generated


def thinking_updates(sizes: Sizes, repeats: int) -> list[Figure]:
    """Forward and backward pass over one such rollout, log-probabilities over the vocabulary on both sides."""
    inputs, group = make_thinking_inputs(sizes), sizes.groups[0]
    batch = inputs.draw(group, normalize="vocab")
    checked = same_updates(_ours(inputs, batch), _theirs(inputs, batch), "updates")
    variants = {"genrl": timed(partial(_ours, inputs, batch)), "peer": timed(partial(_theirs, inputs, batch))}
    seconds = interleave("reasoning-update", variants, repeats)
    setting = f"{len(inputs.prompts)} x {group}, prompt once or copied"
    return [compare("reasoning-update", setting, seconds["genrl"], seconds["peer"], checked=checked)]


def _ours(inputs: Inputs[BlockedLayout], batch: Completions) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T] and the gradient of their sum as one vector."""
    inputs.policy.zero_grad(set_to_none=True)
    logps = score(inputs.policy, inputs.layout, inputs.prompts, batch, Sampling(normalize="vocab")).logps
    logps.sum().backward()
    return logps.detach(), gradient(inputs.policy)


def _theirs(inputs: Inputs[BlockedLayout], batch: Completions) -> tuple[Tensor, Tensor]:
    """The same by plain forward passes over repeated prompts."""
    inputs.policy.zero_grad(set_to_none=True)
    found = []
    for rows in torch.arange(len(batch)).split(max(1, MICRO_BATCH // batch.group_size)):
        part = batch.groups(rows)
        logps = repeated_log_probs(inputs.policy.model, inputs.prompts.rows(rows), part)[0] * part.chosen
        logps.sum().backward()
        found.append(logps.detach())
    return torch.cat(found), gradient(inputs.policy)
