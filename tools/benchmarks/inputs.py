"""What is measured on: a small random policy, a random catalogue, prompts of several lengths."""

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from genrl.batches import Completions, Requests
from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Role, Sequences
from genrl.config.schema import ModelConfig, RolloutConfig
from genrl.layouts.base import Layout
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.layouts.slate import SlateLayout, SlateLayoutConfig
from genrl.policy.load import load_policy
from genrl.policy.model import Policy
from genrl.policy.rollout import rollout
from genrl.prompts.template import PromptMaker, PromptTemplate
from genrl.sid.trie import Trie

LEVELS = 4
BLOCKS = 3
"""SID tokens of completions with thinking, and think blocks."""
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


@dataclass(frozen=True)
class Sizes:
    """How large everything is, and where and in which precision it is timed."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 256
    codes: int = 256
    items: int = 12_000
    prompts: int = 32
    history: int = 15
    """Items of the longest prompt; the shortest has 9."""
    groups: tuple[int, ...] = (16, 64)
    sweep: tuple[int, ...] = (1, 4, 16, 64, 256)
    beams: tuple[int, ...] = (10, 20, 50)
    catalogues: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    long_prompt: int = 1024
    long_completion: int = 200
    thinking_prompts: int = 8
    thinking_prompt: int = 256
    """Tokens of each of them."""
    budget: int = 48
    """Words of a think block at most."""
    slate: int = 10
    """Items of a slate; its prompts are those of the benchmarks with thinking."""
    words: int = 2000
    """Tokens of the vocabulary that are no SID tokens, where completions think."""
    steps: tuple[int, int] = (9, 3)
    """Optimiser steps of genrl and of TRL in one block; the first of each does not count."""
    splits: tuple[int, ...] = (8, 1)
    """Micro-batches per step that TRL is measured with; which is faster for it depends on the machine."""
    update_prompts: int = 32
    """Prompts of the update whose memory is measured; the peer keeps activations of a copy for every completion."""
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES
    """Of the benchmark of the ways."""
    square: int = 2048
    """Rows and columns of the matrices that the machine's ceiling is measured with."""
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bf16"] = "float32"


FULL = Sizes()
QUICK = Sizes(
    hidden=32,
    layers=1,
    heads=2,
    feed_forward=32,
    codes=16,
    items=200,
    prompts=4,
    history=10,
    groups=(8,),
    sweep=(1, 8),
    beams=(5,),
    catalogues=(100, 1000),
    long_prompt=32,
    long_completion=12,
    thinking_prompts=2,
    thinking_prompt=25,
    budget=6,
    slate=3,
    words=300,
    steps=(3, 3),
    update_prompts=4,
    shapes=((2, 4, 20, 4), (1, 2, 8, 12)),
    square=64,
)
CARD = Sizes(
    hidden=1024,
    layers=28,
    heads=16,
    feed_forward=3072,
    history=60,
    groups=(16,),
    beams=(20,),
    steps=(6, 3),
    splits=(8, 4),
    update_prompts=2,
    square=8192,
)
"""A Qwen3 of .38B weights and prompts of 241 tokens: what a GPU is worth, too much for a laptop."""


@dataclass(frozen=True)
class Inputs:
    """A policy with a catalogue and prompts."""

    sizes: Sizes
    policy: Policy
    layout: Layout
    maker: PromptMaker

    @cached_property
    def lowered(self) -> "Inputs":
        """What is timed: the same, with weights in the precision asked for.

        What is checked stays in float32, where rounding is smaller than any mistake.
        """
        if self.sizes.precision == "float32":
            return self
        policy = copy.deepcopy(self.policy)
        policy.to_bfloat16()
        return replace(self, policy=policy)

    @property
    def positions(self) -> Tensor:
        """Where the prompts' targets stand."""
        return self.maker.dataset.sequences.rows(Role.RL)

    @cached_property
    def prompts(self) -> Requests:
        """The prompts, left-padded, on the device."""
        return self.maker.at(self.positions).to(self.policy.device)

    @property
    def sid_tokens(self) -> Tensor:
        """SID tokens of the catalogue [I, K]."""
        return self.maker.template.sid_tokens

    def lengths(self, tokens: Tensor) -> Tensor:
        """Tokens [B] of completions [B, T] up to their ends."""
        return (self.layout.replay(tokens).site >= 0).sum(1)

    def draw(self, group: int, seed: int = 0, normalize: str = "legal") -> Completions:
        """A rollout of `group` sampled completions per prompt, as training draws it."""
        count, categories = len(self.prompts), self.maker.dataset.catalog.categories
        config = RolloutConfig(group_size=group, prompts=count, normalize=normalize)  # type: ignore[arg-type]
        inputs, categories = (self.policy, self.layout, self.prompts, config), categories.to(self.policy.device)
        noise = torch.Generator().manual_seed(seed)
        return rollout(*inputs, generator=noise, rows=slice(0, count), total=count, categories=categories)


def make_inputs(sizes: Sizes) -> Inputs:
    """The inputs of one size; the same on each call."""
    policy = make_policy(sizes)
    layout = make_layout(policy, clustered_codes(sizes.items, sizes.codes))
    return Inputs(sizes, policy, layout, make_prompts(policy, layout.catalogue, sizes))


def make_thinking(sizes: Sizes) -> Inputs:
    """A policy that thinks, with prompts of one length.

    Random weights would hardly ever end a block, so `</think>` has a bias with which most of them end by themselves.
    """
    policy = make_policy(sizes, levels=BLOCKS, words=sizes.words)
    words = policy.words
    assert words is not None
    head = policy.base.get_output_embeddings()
    bias = head.weight.new_zeros(head.out_features)
    bias[words.closing] = math.log(int(words.legal.sum()) / sizes.budget)
    head.bias = nn.Parameter(bias)
    catalogue = make_items(policy, distinct_codes(sizes.items, sizes.codes, BLOCKS))
    layout = BlockedLayout(BlockedLayoutConfig(budget=sizes.budget), catalogue=catalogue, words=words)
    history = (sizes.thinking_prompt - 1) // BLOCKS
    prompts = make_prompts(policy, catalogue, replace(sizes, prompts=sizes.thinking_prompts, history=history), history)
    return Inputs(sizes, policy, layout, prompts)


def make_slates(sizes: Sizes) -> Inputs:
    """Slates of SIDs of three tokens, behind prompts of one length."""
    policy = make_policy(sizes, levels=BLOCKS)
    catalogue = make_items(policy, distinct_codes(sizes.items, sizes.codes, BLOCKS))
    layout = SlateLayout(SlateLayoutConfig(length=sizes.slate), catalogue=catalogue)
    history = (sizes.thinking_prompt - 1) // BLOCKS
    prompts = make_prompts(policy, catalogue, replace(sizes, prompts=sizes.thinking_prompts, history=history), history)
    return Inputs(sizes, policy, layout, prompts)


def make_policy(sizes: Sizes, levels: int = LEVELS, words: int = 4) -> Policy:
    """A Qwen3 with random weights, large enough for its distributions to be far from uniform.

    Without thinking it needs no words beside the SID tokens: they would only slow down peers, which compute all logits.
    """
    config = ModelConfig(
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        feed_forward=sizes.feed_forward,
        vocabulary=words,
        dropout=0.0,
    )
    thinks = words > 4
    letters = torch.randint(26, (1000, 8), generator=torch.Generator().manual_seed(0))  # to train a tokenizer on
    texts = tuple("".join(chr(97 + letter) for letter in row) for row in letters.tolist())
    policy = load_policy(config, (sizes.codes,) * levels, texts if thinks else (), thinking=thinks).eval()
    with torch.no_grad():
        for value in policy.trainable().values():
            if value.dim() > 1:
                value.mul_(4.0)
    return policy.to(sizes.device)


def distinct_codes(items: int, codes: int, levels: int = LEVELS) -> Tensor:
    """Different random SIDs [items, levels], in no order."""
    generator = torch.Generator().manual_seed(items)
    keys = torch.empty(0, dtype=torch.int64)
    while keys.numel() < items:
        more = torch.randint(codes**levels, (items + items // 8 + 16,), generator=generator)
        keys = torch.cat([keys, more]).unique()
    keys = keys[torch.randperm(keys.numel(), generator=generator)[:items]]
    return torch.stack([keys // codes**level % codes for level in reversed(range(levels))], dim=1)


def clustered_codes(items: int, codes: int) -> Tensor:
    """Different SIDs [items, 4] of the shape that clustering gives: three uneven codes and one that counts collisions.

    For 12,000 items of 256 codes there are about 7,750 prefixes of two codes and 10,600 of three, and 48% and 81% of
    the items are alone behind theirs. The published SIDs of Amazon Beauty (LETTER) have 7,931 and 11,696, 47% and 94%;
    residual k-means on its co-occurrences has 10,524 prefixes of three.
    """
    generator = torch.Generator().manual_seed(items)
    prefix = torch.zeros(items, dtype=torch.int64)
    for unevenness in (1.0, 1.3, 3.0):
        column = torch.zeros(items, dtype=torch.int64)
        for node in prefix.unique():
            rows = (prefix == node).nonzero()[:, 0]
            weights = (unevenness * torch.randn(codes, generator=generator)).exp()
            column[rows] = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
        prefix = prefix * codes + column
    _, node, members = prefix.unique(return_inverse=True, return_counts=True)
    collision = torch.empty(items, dtype=torch.int64)
    collision[node.argsort(stable=True)] = torch.arange(items) - (members.cumsum(0) - members).repeat_interleave(
        members
    )
    if int(collision.max()) >= codes:
        raise ValueError(f"{int(collision.max()) + 1} items share three codes; {codes} codes tell too few apart")
    return torch.stack([prefix // codes**2, prefix // codes % codes, prefix % codes, collision], dim=1)


def make_items(policy: Policy, codes: Tensor) -> Items:
    """A catalogue of items with these SIDs [I, K], on the policy's device."""
    return Items(Trie.build(codes, policy.sizes), policy.first_ids, codes).to(policy.device)


def make_layout(policy: Policy, codes: Tensor) -> SidLayout:
    """Completions that are these SIDs [I, K]."""
    return SidLayout(SidLayoutConfig(), catalogue=make_items(policy, codes))


def make_prompts(policy: Policy, items: Items, sizes: Sizes, shortest: int = 9) -> PromptMaker:
    """One user per prompt: a random history of at least `shortest` items, then the target."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(min(shortest, sizes.history), sizes.history + 1, (sizes.prompts,), generator=generator)
    lengths[0] = sizes.history
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (lengths + 1).cumsum(0)])
    total = int(offsets[-1])
    roles = torch.full((total,), int(Role.HISTORY), dtype=torch.uint8)
    roles[offsets[1:] - 1] = int(Role.RL)
    sequences = Sequences(
        items=torch.randint(sizes.items, (total,), generator=generator),
        roles=roles,
        times=torch.arange(total),
        offsets=offsets,
        user_ids=tuple(str(user) for user in range(sizes.prompts)),
    )
    catalog = Catalog.from_table([str(item) for item in range(sizes.items)])
    tokens = items.render(torch.arange(sizes.items, device=policy.device)).cpu()
    template = PromptTemplate(policy.start_id, (), tokens, policy.tokenizer.pad_token_id)
    return PromptMaker(Dataset(catalog, sequences, "random"), template, sizes.history)
