"""The forward and backward pass of an update: its memory, its time, and which way to share a prompt is the fastest."""

import multiprocessing
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.checks import TOLERANCE, gradient, require, same_updates
from benchmarks.figures import Figure, compare, emptied, interleave, timed
from benchmarks.inputs import BLOCKS, QUICK, Sizes, make_inputs, make_layout, make_policy, make_thinking
from benchmarks.peers import repeated_log_probs
from genrl.batches import Completions, Requests
from genrl.layouts.base import Layout
from genrl.layouts.sid import SidLayout
from genrl.policy.distribution import Sampling
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.write import completed, write
from genrl.runs.record import Meter

MEMORY_GOAL = 8.0
LONG_GOAL = 4.0
CODES = 8
ITEMS = 400
"""Codes per level and items of the catalogues whose SIDs have as many levels as a benchmark needs tokens."""
LONG_GROUP = 16
WAYS = ("tree", "expand", "naive")
NAIVE_UP_TO = 16
"""Longest completion that is decoded without a cache, which computes everything anew for each token."""
MICRO_BATCH = 64
"""Rows that the peer's update computes at a time; more at once was slower and takes more memory."""


def memory(sizes: Sizes, repeats: int) -> list[Figure]:
    """Peak memory of one update above the loaded model, with the prompt once and with a copy per completion.

    Each measurement is a process of its own, since freed memory does not always go back to the system.
    """
    group, sizes = sizes.groups[0], replace(sizes, prompts=sizes.update_prompts)
    inputs = make_inputs(sizes)
    update = partial(_update, inputs.policy, inputs.layout, inputs.prompts, inputs.draw(group), "legal")
    checked = same_updates(update("auto"), update("naive"), "ways")
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
    gpu = sizes.device == "cuda"
    small = make_inputs(replace(QUICK, device=sizes.device, precision=sizes.precision)).lowered
    _update(small.policy, small.layout, small.prompts, small.draw(2), "legal", way)  # libraries set themselves up
    inputs = make_inputs(sizes).lowered
    drawn = inputs.draw(group)
    emptied()
    before = torch.cuda.memory_allocated() / 2**20 if gpu else resident()
    meter = Meter(gpu=gpu)
    _update(inputs.policy, inputs.layout, inputs.prompts, drawn, "legal", way)
    return meter.read()["peak_mib"] - before


def resident() -> float:
    """MiB of this process in memory (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def long(sizes: Sizes, repeats: int) -> list[Figure]:
    """Scoring of long completions behind long prompts, with gradient.

    With prompts of one length the copied rows need no mask for padding, and attention kernels skip half of their work;
    with prompts of several lengths, as they are in training, they do not.
    """
    policy, layout = _levels(sizes, sizes.long_completion)
    found = []
    for lengths in ((sizes.long_prompt,), (sizes.long_prompt, sizes.long_prompt * 2 // 3)):
        prompts, drawn = _random(policy, layout, lengths, LONG_GROUP)
        update = partial(_update, policy, layout, prompts, drawn, "vocab")
        checked = same_updates(update("auto"), update("naive"), "ways")
        if sizes.precision == "bf16":
            low = deepcopy(policy)
            low.to_bfloat16()
            update = partial(_update, low, layout, prompts, drawn, "vocab")
        shown = " and ".join(map(str, lengths))
        variants = {way: timed(partial(update, way)) for way in ("auto", "naive")}
        seconds = interleave(f"long, prompts of {shown}", variants, repeats)
        setting = f"score {LONG_GROUP} x {sizes.long_completion} tokens behind {shown}, prompt once or copied"
        goal = LONG_GOAL if len(lengths) == 1 else None
        found.append(compare("long", setting, seconds["auto"], seconds["naive"], goal=goal, checked=checked))
    return found


def ways(sizes: Sizes, repeats: int) -> list[Figure]:
    """What the cost model takes (`auto`) against the fastest single way, scoring with gradient and decoding.

    The ratio is 1 for a right choice and below 1 for a wrong one.
    """
    found = []
    for prompts, group, context, length in sizes.shapes:
        policy, layout = _levels(sizes, length)
        requests, drawn = _random(policy, layout, (context,) * prompts, group)
        noise = torch.rand(prompts, group, length, generator=torch.Generator().manual_seed(0)).to(sizes.device)
        setting = f"{prompts} x {group}, {context} + {length} tokens"
        update = partial(_update, policy, layout, requests, drawn, "vocab")
        found.append(_ways(f"score {setting}", WAYS, update, repeats))
        decode = partial(_decode, policy, layout, requests, noise)
        found.append(_ways(f"decode {setting}", WAYS if length <= NAIVE_UP_TO else WAYS[:2], decode, repeats))
    return found


def _ways(setting: str, candidates: tuple[str, ...], run: Callable[[str], tuple[Tensor, ...]], repeats: int) -> Figure:
    wanted = run(candidates[-1])[0]
    apart = max(float((run(way)[0] - wanted).abs().max()) for way in candidates)
    require(apart <= TOLERANCE, f"ways: log-probabilities differ by {apart:.2g}.")
    seconds = interleave(f"ways, {setting}", {way: timed(partial(run, way)) for way in ("auto", *candidates)}, repeats)
    best = min(candidates, key=lambda way: median(seconds[way]))
    checked = "log-probabilities of all ways are equal"
    return compare("ways", f"{setting}, best is {best}", seconds["auto"], seconds[best], checked=checked)


def thinking_updates(sizes: Sizes, repeats: int) -> list[Figure]:
    """Update of a rollout with thinking against what TRL computes, log-probabilities over the vocabulary on both."""
    inputs, group = make_thinking(sizes), sizes.groups[0]
    batch = inputs.draw(group, normalize="vocab")

    def ours(policy: Policy) -> tuple[Tensor, Tensor]:
        return _update(policy, inputs.layout, inputs.prompts, batch, "vocab", "auto")

    def theirs(policy: Policy) -> tuple[Tensor, Tensor]:
        return _plain_update(policy, inputs.prompts, batch)

    checked = same_updates(ours(inputs.policy), theirs(inputs.policy), "updates")
    low = inputs.lowered.policy
    variants = {"genrl": timed(partial(ours, low)), "peer": timed(partial(theirs, low))}
    seconds = interleave("reasoning-update", variants, repeats)
    setting = f"{len(inputs.prompts)} x {group}, {BLOCKS} think blocks, prompt once or copied"
    return [compare("reasoning-update", setting, seconds["genrl"], seconds["peer"], checked=checked)]


def _levels(sizes: Sizes, levels: int) -> tuple[Policy, SidLayout]:
    """The policy, writing each of many levels with the tokens of the first, and a catalogue of such SIDs."""
    policy = make_policy(sizes)
    policy.first_ids = policy.first_ids[:1] * levels
    policy.sizes = (CODES,) * levels
    codes = torch.randint(CODES, (ITEMS, levels), generator=torch.Generator().manual_seed(0))
    return policy, make_layout(policy, codes)


def _random(policy: Policy, layout: SidLayout, lengths: tuple[int, ...], group: int) -> tuple[Requests, Completions]:
    """Random prompts of these lengths and a group of random items behind each of them, all tokens counted."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(ITEMS, (group * len(lengths),), generator=generator).to(policy.device)
    longest = max(lengths)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    tokens = layout.compose(items[:, None])
    zeros = torch.zeros(tokens.shape, device=tokens.device)
    prompts = torch.randint(policy.base.config.vocab_size, (len(lengths), longest), generator=generator)
    choices = torch.full_like(tokens, 2)
    drawn = completed(layout, group, tokens, layout.replay(tokens), choices, zeros, zeros, Sampling())
    return Requests(prompts, mask, prompts[:, :0]).to(policy.device), drawn


def _update(
    policy: Policy, layout: Layout, prompts: Requests, drawn: Completions, normalize: str, way: str
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T] and the gradient of their sum as one vector, with prompts shared in a given way."""
    policy.branching = way
    policy.zero_grad(set_to_none=True)
    logps = score(policy, layout, prompts, drawn, Sampling(normalize=normalize)).logps  # type: ignore[arg-type]
    logps.sum().backward()
    policy.branching = "auto"
    return logps.detach(), gradient(policy)


def _decode(policy: Policy, layout: Layout, prompts: Requests, noise: Tensor, way: str) -> tuple[Tensor]:
    """Log-probabilities [B, T] of sampled completions, the same for every way but for rounding."""
    policy.branching = way
    logps = write(policy, layout, prompts, noise.shape[1], Sampling(normalize="vocab"), noise).logps
    policy.branching = "auto"
    return (logps,)


def _plain_update(policy: Policy, prompts: Requests, batch: Completions) -> tuple[Tensor, Tensor]:
    """What `_update` gives, by plain forward passes over repeated prompts."""
    policy.zero_grad(set_to_none=True)
    found = []
    for rows in torch.arange(len(batch), device=batch.tokens.device).split(max(1, MICRO_BATCH // batch.group_size)):
        part = batch.groups(rows)
        logps = repeated_log_probs(policy.model, prompts.rows(rows), part)[0] * part.chosen
        logps.sum().backward()
        found.append(logps.detach())
    return torch.cat(found), gradient(policy)
