"""Rollouts, beams and catalogues of several sizes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.checks import all_items, require, same_completions, same_log_probs, same_rankings
from benchmarks.figures import Figure, clocked, compare, interleave, timed
from benchmarks.inputs import (
    BLOCKS,
    LEVELS,
    Inputs,
    Sizes,
    distinct_codes,
    make_inputs,
    make_layout,
    make_slates,
    make_thinking,
)
from benchmarks.peers import constraint, generate_beams, generate_samples
from genrl.batches import Completions, Ranking
from genrl.layouts.sid import SidLayout
from genrl.policy.distribution import Sampling
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.sid.trie import Trie

PEERS = {"function": "transformers + prefix function", "processor": "transformers + logits processor"}
ROLLOUT_GOALS = {16: 15.0, 64: 40.0}
THINKING_GOAL = 3.0
SLATE_GOAL = 8.0
BEAM_GOALS = {10: 10.0, 20: 25.0, 50: 40.0}
CATALOGUE_GOAL = 1.3
BYTES_GOAL = 24.0
SLOW_PEER_UP_TO = 64
"""Largest group of the sweep that the prefix function is measured with."""


def rollouts(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts against `transformers.generate` with either constraint."""
    inputs, found = make_inputs(sizes), []
    for group in sizes.groups:
        found += _rollouts("rollout", inputs, group, {"function": ROLLOUT_GOALS.get(group), "processor": None}, repeats)
    return found


def groups(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts of several group sizes."""
    inputs, found = make_inputs(sizes), []
    for group in sizes.sweep:
        peers = PEERS if group <= SLOW_PEER_UP_TO else ("processor",)
        found += _rollouts("groups", inputs, group, dict.fromkeys(peers), repeats)
    return found


def thinking_rollouts(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts of three think blocks before a SID of three tokens."""
    return _rollouts("reasoning", make_thinking(sizes), sizes.groups[0], {"processor": THINKING_GOAL}, repeats)


def slates(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts of slates of SIDs of three tokens, no item twice."""
    return _rollouts("slates", make_slates(sizes), sizes.groups[0], dict.fromkeys(PEERS, SLATE_GOAL), repeats)


def _rollouts(name: str, inputs: Inputs, group: int, goals: dict[str, float | None], repeats: int) -> list[Figure]:
    """Seconds of rollouts against each constraint of transformers, with goals; where lengths vary, per token, too."""
    seeds = iter(range(repeats + 1))
    fast = inputs.lowered
    makers: dict[str, Callable[[], Tensor]] = {"genrl": lambda: fast.draw(group, next(seeds)).tokens}
    makers |= {kind: partial(generate_samples, fast, group, constraint(kind, inputs)) for kind in goals}
    drawn: dict[str, list[Tensor]] = {who: [] for who in makers}

    def measured(who: str) -> float:
        seconds, tokens = clocked(makers[who])
        drawn[who].append(tokens)
        return seconds

    torch.manual_seed(0)
    seconds = interleave(f"{name}, group {group}", {who: partial(measured, who) for who in makers}, repeats)
    lengths = {who: [inputs.lengths(tokens) for tokens in rounds[1:]] for who, rounds in drawn.items()}
    checked = f"{same_completions(fast, drawn, lengths)}; {same_log_probs(inputs, inputs.draw(group))}"
    setting = f"group {group}"
    if inputs.layout.writes_text:
        setting += f", {inputs.prompts.tokens.shape[1]} + {BLOCKS} x {inputs.sizes.budget} tokens"
    elif inputs.layout.writes_slates:
        setting += f", {inputs.prompts.tokens.shape[1]} + {inputs.layout.items} x {BLOCKS} tokens"
    found = []
    for kind, goal in goals.items():
        times = seconds["genrl"], seconds[kind]
        found.append(compare(name, f"{setting}, {PEERS[kind]}", *times, goal=goal, checked=checked))
        if inputs.layout.writes_text:
            each = [
                [1e6 * one / int(own.sum()) for one, own in zip(seconds[who], lengths[who], strict=True)]
                for who in ("genrl", kind)
            ]
            found.append(compare(name, f"{setting}, per token", *each, unit="us", checked=checked))
    return found


def beams(sizes: Sizes, repeats: int) -> list[Figure]:
    """Beam search against that of transformers, scored over the legal tokens and over the whole vocabulary."""
    inputs = make_inputs(sizes)
    return [_beams(inputs, width, normalize, repeats) for normalize in ("legal", "vocab") for width in sizes.beams]


def _beams(inputs: Inputs, width: int, normalize: str, repeats: int) -> Figure:
    prompts, limits = inputs.prompts, constraint("function", inputs)

    def ours(one: Inputs) -> tuple[Ranking, Completions]:
        return search(one.policy, one.layout, prompts, width, Sampling(normalize=normalize))  # type: ignore[arg-type]

    def theirs(one: Inputs) -> tuple[Tensor, Tensor]:
        return generate_beams(one, width, limits, normalize)

    variants = {name: timed(partial(run, inputs.lowered)) for name, run in (("genrl", ours), ("transformers", theirs))}
    seconds = interleave(f"beam, width {width}, {normalize}", variants, repeats)
    _, mine = ours(inputs)
    ranked = mine.tokens.view(len(prompts), width, -1), mine.logps.sum(1).view(-1, width)
    checked = same_rankings(ranked, theirs(inputs))
    all_items(mine.tokens, inputs.sid_tokens, "genrl")
    setting = f"width {width}, over {normalize} tokens, {PEERS['function']}"
    goal = BEAM_GOALS.get(width) if normalize == "legal" else None
    return compare("beam", setting, seconds["genrl"], seconds["transformers"], goal=goal, checked=checked)


def catalogues(sizes: Sizes, repeats: int) -> list[Figure]:
    """Tries of growing catalogues: time to build, size, and time to decode with the same policy."""
    inputs = make_inputs(sizes)
    prompts, group = inputs.prompts, sizes.groups[0]
    uniforms = torch.rand(len(prompts), group, LEVELS, generator=torch.Generator().manual_seed(0)).to(sizes.device)
    layouts: dict[int, SidLayout] = {}
    figures = []
    for items in sizes.catalogues:
        codes = distinct_codes(items, sizes.codes)
        built, _ = clocked(partial(Trie.build, codes, (sizes.codes,) * LEVELS))
        layouts[items] = make_layout(inputs.policy, codes)
        trie = layouts[items].catalogue.trie
        require(trie.leaves == items, f"the trie of {items} distinct SIDs has {trie.leaves} leaves.")
        for what, value, unit, goal in (
            ("build", built, "s", None),
            ("memory", trie.bytes_per_item_level, "bytes per item and level", BYTES_GOAL),
        ):
            setting, checked = f"{items:,} items: {what}", "one leaf per distinct SID"
            figures.append(Figure("catalogue", setting, value, None, unit, None, None, goal, "lower", checked))

    def decode(items: int) -> Completions:
        return write(inputs.policy, layouts[items], prompts, group, noise=uniforms)

    variants = {str(items): timed(partial(decode, items)) for items in layouts}
    seconds = interleave("catalogue, decoding", variants, repeats)
    for items, layout in layouts.items():
        members = torch.isin(_keys(decode(items).codes, sizes.codes), _keys(layout.codes, sizes.codes))
        require(bool(members.all()), f"{items} items: {int((~members).sum())} samples are no catalogue item.")
    smallest, *others = sizes.catalogues
    checked = f"all {len(prompts) * group} samples are items"
    for items in others:
        setting = f"decode at {items:,} items, against {smallest:,}"
        times = seconds[str(items)], seconds[str(smallest)]
        figures.append(compare("catalogue", setting, *times, better="lower", goal=CATALOGUE_GOAL, checked=checked))
    return figures


def _keys(codes: Tensor, size: int) -> Tensor:
    """One number per SID [n, K]."""
    keys = torch.zeros_like(codes[:, 0])
    for level in codes.unbind(1):
        keys = keys * size + level
    return keys
