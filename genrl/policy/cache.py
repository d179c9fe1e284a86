"""Key-value caches with room for the tokens to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


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
