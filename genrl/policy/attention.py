"""What attention sees: masks and positions of completions behind their prompts, caches, one prompt for many rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

NAME = "genrl_shared_prompt"
"""What transformers calls `shared_attention`."""


def left_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [P, L] padded on any side -> padded on the left only, without columns that no prompt fills."""
    order = mask.long().argsort(dim=1, stable=True)
    length = int(mask.sum(1).max()) if mask.device.type == "cpu" else mask.shape[1]  # elsewhere a look would be a wait
    return tokens.gather(1, order)[:, -length:], mask.gather(1, order)[:, -length:]


def right_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [P, L] -> padded on the right only. Causal attention then needs no mask: no token sees what follows."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


def prompt_positions(mask: Tensor) -> Tensor:
    """Position of each token of left-padded prompts [P, L]; padding gets 0."""
    return (mask.long().cumsum(1) - 1).clamp_(min=0)


def causal_mask(mask: Tensor) -> Tensor:
    """Who attends to whom inside left-padded prompts: [P, L] -> [P, 1, L, L].

    A padding token attends to itself, since a softmax over nothing is not a number.
    """
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    alone = torch.eye(length, dtype=torch.bool, device=mask.device)
    return ((causal & mask[:, None, :]) | alone)[:, None]


def packed_mask(segments: Tensor, positions: Tensor | None = None, leaves: Tensor | None = None) -> Tensor:
    """Causal attention inside segments of packed rows: ids [R, L], -1 is padding -> [R, 1, L, L].

    A segment may be a text with branches behind it, which see the text up to where they leave it, and themselves.

    Args:
        segments: [R, L].
        positions: [R, L] in the text or branch; needed with `leaves`.
        leaves: [R, L] position at which the branch of a token leaves the text, 0 for the text itself; None: there are
            no branches.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen = (segments[:, :, None] == segments[:, None, :]) & causal
    if leaves is not None and positions is not None:
        before = (leaves == 0)[:, None, :] & (positions[:, None, :] < leaves[:, :, None])
        seen &= (leaves[:, :, None] == leaves[:, None, :]) | before
    return seen[:, None]


def branch_mask(mask: Tensor, branch: Tensor, place: Tensor) -> Tensor:
    """Mask of prompts [P, L] followed by tokens of several completions in one row.

    A completion token sees the prompt and its own branch up to itself, never another branch.

    Args:
        mask: [P, L].
        branch: [P, N] completion that each token belongs to.
        place: [P, N] its place there.

    Returns:
        [P, 1, L + N, L + N].
    """
    (prompts, length), tail = mask.shape, branch.shape[1]
    own = (branch[:, :, None] == branch[:, None, :]) & (place[:, :, None] >= place[:, None, :])
    full = torch.zeros(prompts, 1, length + tail, length + tail, dtype=torch.bool, device=mask.device)
    full[:, :, :length, :length] = causal_mask(mask)
    full[:, :, length:, :length] = mask[:, None, None, :]
    full[:, :, length:, length:] = own[:, None]
    return full


def grown_mask(seen: Tensor, parents: Tensor | None) -> Tensor:
    """What one more level of slots sees: all that its parents see, and each slot itself.

    Args:
        seen: [P, W, N] bool, what each slot of the last level sees of N cached tokens, its own among them.
        parents: [P, V] slots of the last level; None: one child for each.

    Returns:
        [P, V, N + V].
    """
    if parents is not None:
        seen = seen.gather(1, parents[:, :, None].expand(-1, -1, seen.shape[2]))
    prompts, width, _ = seen.shape
    itself = torch.eye(width, dtype=torch.bool, device=seen.device).expand(prompts, -1, -1)
    return torch.cat([seen, itself], dim=2)


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer in buffers that are as long as they will ever be.

    transformers' own layer copies all it holds for every token that it adds; this one writes the new token behind the
    others. Not for passes with gradient, since it changes its buffers in place.

    Args:
        room: tokens that will be added in all.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Add tokens [B, heads, n, width] and return all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._reserve(key_states[:, :, :0], value_states[:, :, :0])
        assert self.buffers is not None
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self._show(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, each as often as it is named."""
        self._reserve(self.keys[indices], self.values[indices])

    def _reserve(self, keys: Tensor, values: Tensor) -> None:
        """Copy what there is into buffers of full length."""
        rows, heads, length, _ = keys.shape
        self.buffers = (
            keys.new_empty(rows, heads, self.room, keys.shape[3]),
            values.new_empty(rows, heads, self.room, values.shape[3]),
        )
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, :length] = states
        self._show(length)

    def _show(self, length: int) -> None:
        assert self.buffers is not None
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


class SharedLayer(DynamicLayer):
    """Keys and values of one layer, repeated for several rows at the moment that each row adds its own.

    transformers' own layer copies the prompt twice: once to repeat it and once to put the rows' tokens behind it.
    """

    keys: Tensor
    values: Tensor
    repeats = 1

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have each row `repeats` times from the next update on."""
        self.repeats = repeats

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Add tokens [B * repeats, heads, n, width] and return all there are."""
        if self.repeats > 1:
            self.keys = self._behind(self.keys, key_states)
            self.values = self._behind(self.values, value_states)
            self.repeats = 1
            return self.keys, self.values
        return super().update(key_states, value_states)

    def _behind(self, shared: Tensor, own: Tensor) -> Tensor:
        copies = shared[:, None].expand(-1, self.repeats, -1, -1, -1)
        return torch.cat([copies, own.unflatten(0, (-1, self.repeats))], dim=3).flatten(0, 1)


def model_cache(config: Any, layer: Callable[[], DynamicLayer]) -> DynamicCache:  # noqa: ANN401 (transformers is untyped)
    """A cache with our own layers; those of the model that keep something else than all tokens stay."""
    cache = DynamicCache(config=config.get_text_config())
    cache.layers = [layer() if type(own) is DynamicLayer else own for own in cache.layers]
    return cache


def tree_cache(config: Any, room: int) -> DynamicCache:  # noqa: ANN401
    """A cache of `room` tokens in which every layer keeps all of them, whatever its window."""
    cache = DynamicCache()
    cache.layers = [ReservedLayer(room) for _ in range(config.get_text_config().num_hidden_layers)]
    return cache


class SharedPrompt:
    """Keys and values of prompts, and which rows stand behind each.

    Keys of a prompt are read once for all its rows instead of once for each: that is what decoding takes its time for.

    Args:
        cache: of a pass over the prompts.
        mask: [P, L] of the prompts, padded on the right.
        dtype: of the model's hidden states.
    """

    def __init__(self, cache: DynamicCache, mask: Tensor, dtype: torch.dtype) -> None:
        self.lengths = mask.sum(1)
        self.layers = [_stored(layer.keys, layer.values) for layer in cache.layers]
        """Keys [P, heads, width, L] and values [P, heads, L, width] of each layer."""
        self.bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))[:, None, None]
        """[P, 1, 1, L]: 0 at tokens, -inf at padding."""
        self.serve(torch.arange(len(mask), device=mask.device), 1)

    def serve(self, owners: Tensor, width: int = 0) -> None:
        """The rows are now those of the prompts `owners` [n], ascending; `width` for each, or 0 where that differs."""
        first = torch.searchsorted(owners, torch.arange(len(self.lengths), device=owners.device))
        self.width = width or int((torch.searchsorted(owners, owners, right=True) - first[owners]).max())
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
def shared_prompts(config: Any) -> Iterator[None]:  # noqa: ANN401 (transformers is untyped)
    """Inside the block the layers of a decoder see `SharedPrompt` before what their caches hold."""
    from transformers import AttentionInterface  # takes seconds to load

    AttentionInterface.register(NAME, shared_attention)
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
