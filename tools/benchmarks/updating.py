"""The forward and backward pass of an update: its memory, and its time with long completions."""

from __future__ import annotations

import gc
import multiprocessing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.checks import gradient, same_updates
from benchmarks.figures import Figure, compare, interleave, timed
from benchmarks.inputs import QUICK, Sizes, make_inputs, make_layout, make_policy
from genrl.batches import Completions, Requests
from genrl.layouts.sid import SidLayout
from genrl.policy.distribution import Sampling
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.write import completed
from genrl.runs.record import Meter

MEMORY_GOAL = 8.0
LONG_GOAL = 4.0
LONG_CODES = 8
LONG_GROUP = 16
LONG_ITEMS = 400


def memory(sizes: Sizes, repeats: int) -> list[Figure]:
    """Peak memory of one update above the loaded model, with the prompt once and with a copy per completion.

    Each measurement is a process of its own, since freed memory does not always go back to the system.
    """
    group = sizes.groups[0]
    inputs = make_inputs(sizes)
    checked = _same_update(inputs.policy, inputs.layout, inputs.prompts, inputs.draw(group), "legal")
    variants = {way: partial(_peak_elsewhere, sizes, way, group, torch.get_num_threads()) for way in ("auto", "naive")}
    mib = interleave("memory", variants, min(repeats, 3), warm_up=False)
    setting = f"update of {sizes.prompts} x {group} above the model, prompt once or copied"
    return [compare("memory", setting, mib["auto"], mib["naive"], unit="MiB", goal=MEMORY_GOAL, checked=checked)]


def _peak_elsewhere(*arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(peak, arguments))


def peak(sizes: Sizes, way: str, group: int, threads: int) -> float:
    """MiB that one forward and backward pass needs at its peak above what the process held before."""
    torch.set_num_threads(threads)
    small = make_inputs(QUICK)
    _update(small.policy, small.layout, small.prompts, small.draw(2), way, "legal")  # libraries set themselves up
    inputs = make_inputs(sizes)
    drawn = inputs.draw(group)
    gc.collect()
    before = _resident()
    meter = Meter()
    _update(inputs.policy, inputs.layout, inputs.prompts, drawn, way, "legal")
    return meter.read()["peak_mib"] - before


def _resident() -> float:
    """MiB that this process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def long(sizes: Sizes, repeats: int) -> list[Figure]:
    """Scoring of long completions behind long prompts, with gradient.

    With prompts of one length the copied rows need no mask for padding, and attention kernels skip half of their work;
    with prompts of several lengths, as they are in training, they do not.
    """
    policy, generator = _long_policy(sizes), torch.Generator().manual_seed(0)
    codes = torch.randint(LONG_CODES, (LONG_ITEMS, sizes.long_completion), generator=generator)
    layout = make_layout(policy, codes, LONG_CODES)
    return [
        _long(policy, layout, sizes, lengths, repeats)
        for lengths in ((sizes.long_prompt,), (sizes.long_prompt, sizes.long_prompt * 2 // 3))
    ]


def _long(policy: Policy, layout: SidLayout, sizes: Sizes, lengths: tuple[int, ...], repeats: int) -> Figure:
    prompts, drawn = _long_rollout(layout, sizes, lengths)
    checked = _same_update(policy, layout, prompts, drawn, "vocab")
    variants = {way: timed(partial(_update, policy, layout, prompts, drawn, way, "vocab")) for way in ("auto", "naive")}
    shown = " and ".join(map(str, lengths))
    seconds = interleave(f"long, prompts of {shown}", variants, repeats)
    setting = f"score {LONG_GROUP} x {sizes.long_completion} tokens behind {shown}, prompt once or copied"
    goal = LONG_GOAL if len(lengths) == 1 else None
    return compare("long", setting, seconds["auto"], seconds["naive"], goal=goal, checked=checked)


def _long_policy(sizes: Sizes) -> Policy:
    """The policy, writing each of many levels with the tokens of the first."""
    policy = make_policy(sizes)
    policy.first_ids = policy.first_ids[:1] * sizes.long_completion
    policy.sizes = (LONG_CODES,) * sizes.long_completion
    return policy


def _long_rollout(layout: SidLayout, sizes: Sizes, lengths: tuple[int, ...]) -> tuple[Requests, Completions]:
    """Random prompts and a group of random items behind each of them, all tokens counted."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randperm(LONG_ITEMS, generator=generator)[: LONG_GROUP * len(lengths)]
    longest = max(lengths)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    tokens = layout.compose(items[:, None])
    first, zeros = layout.tokens.first_ids[0], torch.zeros(tokens.shape)
    prompts = torch.randint(first, first + sizes.codes, (len(lengths), longest), generator=generator)
    choices = torch.full_like(tokens, 2)
    drawn = completed(layout, LONG_GROUP, tokens, layout.replay(tokens), choices, zeros, zeros, Sampling())
    return Requests(prompts, mask, prompts[:, :0]), drawn


def _update(
    policy: Policy, layout: SidLayout, prompts: Requests, drawn: Completions, way: str, normalize: str
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T] and the gradient of their sum as one vector, with prompts shared in a given way."""
    policy.branching = way
    policy.zero_grad(set_to_none=True)
    scores = score(policy, layout, prompts, drawn, Sampling(normalize=normalize))  # type: ignore[arg-type]
    scores.logps.sum().backward()
    policy.branching = "auto"
    return scores.logps.detach(), gradient(policy)


def _same_update(policy: Policy, layout: SidLayout, prompts: Requests, drawn: Completions, normalize: str) -> str:
    """Compare log-probabilities and gradients of both ways."""
    ours, theirs = (_update(policy, layout, prompts, drawn, way, normalize) for way in ("auto", "naive"))
    return same_updates(ours, theirs, "ways")
