"""Small real models, layouts and prompts that tests of the policy share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from genrl.batches import Completions, Requests, Targets
from genrl.config.schema import ModelConfig
from genrl.layouts.base import BROKEN, Layout
from genrl.layouts.blocked import BlockedLayout, BlockedLayoutConfig
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.policy.distribution import Sampling
from genrl.policy.load import load_policy
from genrl.policy.model import Head, Policy
from genrl.policy.tiny import train_tokenizer
from genrl.policy.write import completed
from genrl.sid.trie import Trie
from genrl.training.skips import flatten

SIZES = (6, 5, 7)
TEXTS = ("red apple pie", "green pear tart", "blue plum jam", "sweet red cherry")
TINY = ModelConfig(hidden=32, layers=2, heads=2, feed_forward=48, vocabulary=320)
ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def make_codes(items: int = 60, seed: int = 0) -> Tensor:
    """Distinct random SIDs [I, 3]."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(SIZES[0] * SIZES[1] * SIZES[2], generator=generator)[:items]
    return torch.stack([places // 35, places // 7 % 5, places % 7], dim=1)


def make_policy(config: ModelConfig = TINY, prefix: str = "", *, thinking: bool = False) -> Policy:
    """A policy with random weights that are large enough for its distributions to be far from uniform."""
    policy = load_policy(config, SIZES, TEXTS, prefix, thinking=thinking).eval()
    if config.name == "tiny":
        with torch.no_grad():
            for value in policy.trainable().values():
                if value.dim() > 1:
                    value.mul_(4.0)
    return policy


def make_items(policy: Policy, codes: Tensor) -> Items:
    """The items of a small catalogue, higher rows more popular."""
    return Items(Trie.build(codes, SIZES, torch.arange(len(codes))), policy.first_ids, codes)


def make_layout(policy: Policy, codes: Tensor | None = None) -> SidLayout:
    """The SID layout of a small catalogue."""
    codes = make_codes() if codes is None else codes
    return SidLayout(SidLayoutConfig(), catalogue=make_items(policy, codes))


def make_thinking(policy: Policy, codes: Tensor | None = None, **options: Any) -> BlockedLayout:
    """Think blocks of up to six words over the same catalogue, for a policy that was made with `thinking`."""
    codes = make_codes() if codes is None else codes
    config = BlockedLayoutConfig(**{"budget": 6, **options})
    return BlockedLayout(config, catalogue=make_items(policy, codes), words=policy.words)


def make_prompts(policy: Policy, items: int = 60, seed: int = 0) -> Requests:
    """Five left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([11, 4, 7, 1, 9])
    mask = torch.arange(11) >= (11 - lengths)[:, None]
    tokens = torch.randint(4, policy.first_ids[0], (5, 11), generator=generator)
    targets = torch.randint(0, items, (5, 1), generator=generator)
    return Requests(tokens.masked_fill(~mask, 0), mask, torch.full((5, 1), -1), Targets(targets))


def every_item(layout: SidLayout, prompts: Requests) -> Completions:
    """Each item of the catalogue as a completion of each prompt, in the order of the catalogue."""
    items = torch.arange(len(layout.codes)).repeat(len(prompts))
    tokens = layout.compose(items[:, None])
    return as_completions(layout, tokens, len(layout.codes), torch.ones_like(tokens, dtype=torch.bool))


def as_completions(layout: Layout, tokens: Tensor, group: int, chosen: Tensor | None = None) -> Completions:
    """Given tokens as completions, all that is no form chosen."""
    states = layout.replay(tokens)
    form = torch.tensor([kind == "form" for kind in layout.kinds] + [True])
    choices = torch.where(form[states.site.clamp(max=len(layout.kinds))], 0, 2)
    zeros = torch.zeros(tokens.shape)
    done = completed(layout, group, tokens, states, choices, zeros, zeros, Sampling())
    return done if chosen is None else replace(done, chosen=chosen)


def every_completion(layout: Layout) -> list[tuple[int, ...]]:
    """Every completion of a small grammar; no legal set may be empty."""
    found: list[tuple[int, ...]] = []
    front: list[tuple[int, ...]] = [()]
    state = layout.start(1)
    while front:
        assert max(map(len, front)) <= layout.length
        following: list[tuple[int, int]] = []
        for row, (tokens, site) in enumerate(zip(front, state.site.tolist(), strict=True)):
            if site < 0:
                assert tokens not in found
                found.append(tokens)
                continue
            legal = layout.legal(site, state.rows(torch.tensor([row])))
            columns = legal.mask[0].nonzero()
            assert len(columns), f"nothing is legal behind {tokens}"
            following += [(row, int(legal.token(column[None]))) for column in columns]
        rows, drawn = torch.tensor(following, dtype=torch.int64).reshape(-1, 2).unbind(1)
        state = layout.advance(state.rows(rows), drawn, len(front[0]) if layout.in_step else None)
        assert bool((state.site != BROKEN).all())
        front = [(*front[row], token) for row, token in following]
    return found


def padded(rows: list[Any], fill: int) -> Tensor:
    """Rows of different lengths as one tensor."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def save_local_model(folder: Path, architecture: str = "qwen2", **changes: Any) -> Path:
    """Write a small random causal LM with its tokenizer, as a downloaded one would lie there."""
    tokenizer = train_tokenizer(TEXTS, 300)
    config_class, model_class = ARCHITECTURES[architecture]
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    if architecture == "qwen3":
        options["head_dim"] = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(**options))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def local_config(folder: Path, **changes: Any) -> ModelConfig:
    """Model section that loads such a folder."""
    return replace(ModelConfig(name=str(folder)), **changes)


def head_of(policy: Policy, rows: str = "vocab") -> Head:
    """The output head, of which a pass without tokens reads `rows`."""
    empty = torch.zeros(1, 0, dtype=torch.int64)
    return policy(empty, None, empty, lambda _, head: head, rows)


def logits(policy: Policy, hidden: Tensor) -> Tensor:
    """Those of the whole vocabulary."""
    head = head_of(policy)
    return head.logits(hidden, 0, len(head.weight))


@contextmanager
def shut(policy: Policy) -> Iterator[None]:
    """Weights are NaN but inside the policy's forward and backward passes, as a strategy that shards them has it."""
    weights = [(value, value.data.clone()) for value in policy.parameters()]

    def gather(*_: object) -> None:
        for value, whole in weights:
            value.data.copy_(whole)

    def scatter(*_: object) -> None:
        for value, _whole in weights:
            value.data.fill_(float("nan"))

    def leave(module: Policy, inputs: object, output: object) -> None:
        scatter()
        for value in flatten(output).values():
            if value.requires_grad:
                value.register_hook(gather)

    hooks = policy.register_forward_pre_hook(gather), policy.register_forward_hook(leave)
    scatter()
    try:
        yield
    finally:
        gather()
        for hook in hooks:
            hook.remove()
