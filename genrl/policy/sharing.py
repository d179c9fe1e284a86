"""Attention of many rows to one copy of the prompt that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genrl.policy.cache import tree_cache
from genrl.policy.model import Head, Policy, Read, states
from genrl.policy.tree import right_padded

NAME = "genrl_shared_prompt"


class SharedPrompt:
    """Keys and values of prompts, and which rows stand behind each.

    Keys of a prompt are read once for all its rows instead of once for each: that is what decoding takes its time for.

    Args:
        policy: the model.
        tokens: prompts [P, L], padded on any side.
        mask: [P, L].
        owners: prompts [n] of the rows, ascending.
        read: gets the hidden states [P, H] behind the prompts, inside the pass.
        head: rows of the head for it, see `Policy.forward`.
    """

    def __init__(
        self,
        policy: Policy,
        tokens: Tensor,
        mask: Tensor,
        owners: Tensor,
        read: Read[object] = states,
        head: str = "legal",
    ) -> None:
        self.policy = policy
        tokens, mask = right_padded(tokens, mask)
        prompts, length = tokens.shape
        cache = tree_cache(policy.base.config, length)
        positions = torch.arange(length, device=tokens.device).expand(prompts, -1)
        self.lengths = mask.sum(1)

        def last(hidden: Tensor, head: Head) -> torch.dtype:
            read(hidden.gather(1, (self.lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0], head)
            return hidden.dtype

        dtype = policy(tokens, None, positions, last, head, cache)
        self.layers = [_stored(layer.keys, layer.values) for layer in cache.layers]
        """Keys [P, heads, width, L] and values [P, heads, L, width] of each layer."""
        self.bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))[:, None, None]
        """[P, 1, 1, L]: 0 at tokens, -inf at padding."""
        self.serve(owners)

    def serve(self, owners: Tensor) -> None:
        """The rows are now those of the prompts `owners` [n], ascending."""
        counts = torch.bincount(owners, minlength=len(self.lengths))
        self.width = int(counts.max())
        first = counts.cumsum(0) - counts
        self.places = owners * self.width + torch.arange(len(owners), device=owners.device) - first[owners]
        """Place [n] of each row among `width` for each prompt."""

    def together(self, rows: Tensor) -> Tensor:
        """[n, heads, queries, x] -> the rows of each prompt one behind the other, [P, heads, width * queries, x]."""
        prompts, (_, heads, queries, last) = len(self.lengths), rows.shape
        whole = rows.new_zeros(prompts * self.width, heads, queries, last).index_copy(0, self.places, rows)
        return whole.view(prompts, self.width, heads, queries, last).transpose(1, 2).flatten(2, 3)

    def apart(self, whole: Tensor) -> Tensor:
        """The inverse of `together`."""
        return whole.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)[self.places]

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Inside the block the model's layers see the prompts before what their caches hold."""
        from transformers import AttentionInterface  # takes seconds to load

        AttentionInterface.register(NAME, shared_attention)
        config = self.policy.decoder.config
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before


def _stored(keys: Any, values: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (transformers' layers may be empty)
    """Keys and values of prompts in the order in which they are read."""
    return keys.transpose(2, 3).contiguous(), values


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: SharedPrompt,
    **_: Any,  # noqa: ANN401 (what other attention functions take)
) -> tuple[Tensor, None]:
    """Attention of one query per row to the row's prompt and to all of its own keys; see transformers' interface.

    Args:
        module: layer that attends.
        query: [n, heads, 1, width].
        key: [n, key heads, t, width] of the row's own tokens.
        value: as `key`.
        attention_mask: not used: rows have equally many tokens of their own.
        scaling: of the scores.
        shared: prompts of the rows.
    """
    rows, heads, _queries, width = query.shape
    asked = query.reshape(rows, key.shape[1], -1, width) * scaling
    keys, values = shared.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    before = shared.together(asked) @ keys + shared.bias
    scores = torch.cat([before, shared.together(asked @ key.transpose(2, 3))], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    to_prompt, to_own = weights.split([values.shape[2], key.shape[2]], dim=-1)
    found = shared.apart(to_prompt @ values) + shared.apart(to_own) @ value
    return found.reshape(rows, 1, heads, width), None


def can_share(policy: Policy, longest: int) -> bool:
    """Whether the layers of a model attend through transformers' interface, tried once; and see `longest` tokens."""
    if policy.window is not None and longest > policy.window:
        return False
    if policy.device not in policy.shares_prompt:
        policy.shares_prompt[policy.device] = _probe(policy)
    return policy.shares_prompt[policy.device]


@torch.no_grad()
def _probe(policy: Policy) -> bool:
    """Whether two tokens behind a shared prompt have the hidden states of plain rows."""
    device, vocabulary = policy.device, policy.base.config.get_text_config().vocab_size
    tokens = torch.arange(5, device=device)[None] % vocabulary
    prompt, own = tokens[:, :3], tokens[0, 3:, None]
    seen = torch.ones(2, 4, dtype=torch.bool, device=device)
    positions = torch.arange(4, device=device).expand(2, -1)
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            wanted = policy(torch.cat([prompt.expand(2, -1), own], dim=1), seen, positions, states)[:, -1:]
            shared = SharedPrompt(policy, prompt, seen[:1, :3], torch.zeros(2, dtype=torch.int64, device=device))
            with shared.attended():
                cache = tree_cache(policy.base.config, 1)
                found = policy(own, None, positions[:, 3:], states, cache=cache, shared=shared)
    except Exception:  # whatever a foreign architecture answers to attention that it does not know
        return False
    finally:
        for module, training in modes.items():
            module.training = training
    relative = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return relative <= (1e-3 if wanted.dtype in (torch.float32, torch.float64) else 5e-2)
