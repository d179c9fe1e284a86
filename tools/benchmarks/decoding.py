"""Rollouts, beams and catalogues of several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.checks import (
    all_items,
    expected_frequencies,
    first_token_probabilities,
    require,
    same_log_probs,
    same_rankings,
)
from benchmarks.figures import Figure, compare, interleave, plain, timed
from benchmarks.inputs import LEVELS, Inputs, Sizes, distinct_codes, make_inputs, make_layout
from benchmarks.peers import PrefixFunction, constraint, generate_beams, generate_samples
from genrl.batches import Completions, Ranking
from genrl.layouts.sid import SidLayout
from genrl.policy.distribution import Sampling
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.sid.trie import Trie

PEERS = {"function": "transformers + prefix function", "processor": "transformers + logits processor"}
ROLLOUT_GOALS = {16: 15.0, 64: 40.0}
BEAM_GOALS = {10: 10.0, 20: 25.0, 50: 40.0}
CATALOGUE_GOAL = 1.3
BYTES_GOAL = 24.0
SLOW_PEER_UP_TO = 64
"""Largest group of the sweep that the prefix function is measured with."""


def rollouts(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts against `transformers.generate` with either constraint."""
    inputs = make_inputs(sizes)
    found = []
    for group in sizes.groups:
        found += _rollouts(inputs, "rollout", group, tuple(PEERS), repeats, ROLLOUT_GOALS.get(group))
    return found


def groups(sizes: Sizes, repeats: int) -> list[Figure]:
    """Rollouts of several group sizes."""
    inputs = make_inputs(sizes)
    found = []
    for group in sizes.sweep:
        peers = tuple(PEERS) if group <= SLOW_PEER_UP_TO else ("processor",)
        found += _rollouts(inputs, "groups", group, peers, repeats, None)
    return found


def _rollouts(
    inputs: Inputs[SidLayout], name: str, group: int, peers: tuple[str, ...], repeats: int, goal: float | None
) -> list[Figure]:
    prompts, model, length = inputs.prompts, inputs.policy.model, inputs.layout.length
    context = prompts.tokens.shape[1]
    makers: dict[str, Callable[[], Tensor]] = {"genrl": lambda: inputs.draw(group).tokens}
    for kind in peers:
        limits = constraint(kind, inputs.layout, inputs.sid_tokens, context)
        makers[kind] = partial(generate_samples, model, prompts, group, length, limits)
    torch.manual_seed(0)
    seconds = interleave(f"{name}, group {group}", {who: timed(make) for who, make in makers.items()}, repeats)
    allowed = PrefixFunction(inputs.sid_tokens, context)
    first = first_token_probabilities(model, inputs, allowed)
    for who, make in makers.items():
        tokens = make()
        all_items(tokens, inputs.sid_tokens, who)
        expected_frequencies(first, tokens[:, 0], who)
    checked = "all samples are items; first codes as frequent as they should be; "
    checked += same_log_probs(inputs, inputs.draw(group), allowed)
    found = partial(compare, name, ours=seconds["genrl"], checked=checked)
    goals = {"function": goal}
    return [found(f"group {group}, {PEERS[kind]}", theirs=seconds[kind], goal=goals.get(kind)) for kind in peers]


def beams(sizes: Sizes, repeats: int) -> list[Figure]:
    """Beam search against that of transformers, scored over the legal tokens and over the whole vocabulary."""
    inputs = make_inputs(sizes)
    return [_beams(inputs, width, normalize, repeats) for normalize in ("legal", "vocab") for width in sizes.beams]


def _beams(inputs: Inputs[SidLayout], width: int, normalize: str, repeats: int) -> Figure:
    prompts, layout = inputs.prompts, inputs.layout
    limits = constraint("function", layout, inputs.sid_tokens, prompts.tokens.shape[1])

    def ours() -> tuple[Ranking, Completions]:
        return search(inputs.policy, layout, prompts, width, Sampling(normalize=normalize))  # type: ignore[arg-type]

    def theirs() -> tuple[Tensor, Tensor]:
        return generate_beams(inputs.policy.model, prompts, width, layout.length, limits, normalize)

    variants = {"genrl": timed(ours), "transformers": timed(theirs)}
    seconds = interleave(f"beam, width {width}, {normalize}", variants, repeats)
    _, mine = ours()
    ranked = mine.tokens.view(len(prompts), width, -1), mine.logps.sum(1).view(-1, width)
    checked = same_rankings(ranked, theirs())
    all_items(mine.tokens, inputs.sid_tokens, "genrl")
    setting = f"width {width}, over {normalize} tokens, {PEERS['function']}"
    goal = BEAM_GOALS.get(width) if normalize == "legal" else None
    return compare("beam", setting, seconds["genrl"], seconds["transformers"], goal=goal, checked=checked)


def catalogues(sizes: Sizes, repeats: int) -> list[Figure]:
    """Tries of growing catalogues: time to build, size, and time to decode with the same policy."""
    inputs = make_inputs(sizes)
    prompts, group = inputs.prompts, sizes.groups[0]
    uniforms = torch.rand(len(prompts), group, LEVELS, generator=torch.Generator().manual_seed(0))
    layouts: dict[int, SidLayout] = {}
    figures = []
    single = partial(plain, "catalogue", checked="one leaf per distinct SID")
    for items in sizes.catalogues:
        codes = distinct_codes(items, sizes.codes)
        started = time.perf_counter()
        Trie.build(codes, (sizes.codes,) * LEVELS)
        built = time.perf_counter() - started
        layouts[items] = make_layout(inputs.policy, codes, sizes.codes)
        trie = layouts[items].catalogue.trie
        require(trie.leaves == items, f"the trie of {items} distinct SIDs has {trie.leaves} leaves.")
        bytes_each = trie.bytes_per_item_level
        figures.append(single(f"{items:,} items: build", built, unit="s"))
        figures.append(single(f"{items:,} items: memory", bytes_each, unit="bytes per item and level", goal=BYTES_GOAL))

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
    keys = torch.zeros(len(codes), dtype=torch.int64)
    for level in codes.unbind(1):
        keys = keys * size + level
    return keys
