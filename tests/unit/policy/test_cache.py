from __future__ import annotations

import torch
from transformers import Qwen3Config
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from genrl.policy.cache import ReservedLayer, SharedLayer, model_cache, tree_cache
from tests.helpers import assert_same


def parts(rows: int, *lengths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(rows, 2, n, 3, generator=generator), torch.randn(rows, 2, n, 4, generator=generator))
        for n in lengths
    ]


def test_tokens_stand_where_transformers_puts_them_and_nothing_is_copied() -> None:
    own, theirs = ReservedLayer(room=9), DynamicLayer()
    places = set()
    for keys, values in parts(2, 5, 1, 3):
        found, wanted = own.update(keys, values), theirs.update(keys, values)
        assert_same(found[0], wanted[0])
        assert_same(found[1], wanted[1])
        assert own.get_seq_length() == theirs.get_seq_length()
        assert own.get_mask_sizes(1) == theirs.get_mask_sizes(1)
        places.add(found[0].data_ptr())
    assert len(places) == 1


def test_rows_are_selected_and_grow_on() -> None:
    own, theirs = ReservedLayer(room=8), DynamicLayer()
    rows = torch.tensor([1, 1, 0, 1])
    (first, more) = parts(2, 4)[0], parts(4, 2)[0]
    for layer in (own, theirs):
        layer.update(*first)
        layer.batch_select_indices(rows)
        layer.update(*more)
    assert_same(own.keys, theirs.keys)
    assert_same(own.values, theirs.values)


def config(**changes: object) -> Qwen3Config:
    return Qwen3Config(num_hidden_layers=3, **changes)


def test_layers_with_a_window_keep_their_own_kind() -> None:
    cache = model_cache(
        config(use_sliding_window=True, sliding_window=4, max_window_layers=2), lambda: ReservedLayer(7)
    )
    assert [type(layer) for layer in cache.layers] == [ReservedLayer, ReservedLayer, DynamicSlidingWindowLayer]
    assert isinstance(cache, DynamicCache)
    whole = tree_cache(config(use_sliding_window=True, sliding_window=4, max_window_layers=2), room=7)
    assert [type(layer) for layer in whole.layers] == [ReservedLayer] * 3


def test_a_shared_prompt_is_repeated_when_rows_add_their_own() -> None:
    own, theirs = SharedLayer(), DynamicLayer()
    (first, more) = parts(2, 4)[0], parts(6, 2)[0]
    for layer in (own, theirs):
        layer.update(*first)
        layer.batch_repeat_interleave(3)
        assert layer.get_seq_length() == 4
        layer.update(*more)
    assert_same(own.keys, theirs.keys)
    assert_same(own.values, theirs.values)
