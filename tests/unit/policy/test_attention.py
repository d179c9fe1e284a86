from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from genrl.policy.attention import (
    ReservedLayer,
    SharedLayer,
    SharedPrompt,
    branch_mask,
    causal_mask,
    grown_mask,
    left_padded,
    model_cache,
    packed_mask,
    prompt_positions,
    right_padded,
    shared_attention,
    shared_prompts,
    tree_cache,
)
from genrl.policy.model import Policy
from genrl.policy.share import Copied, Hidden, Shared, grow, wrong_ways
from tests.helpers import assert_same
from tests.models import ARCHITECTURES, local_config, make_policy, make_prompts, save_local_model


def states(said: Hidden) -> Tensor:
    return said.states


MASK = torch.tensor([[False, True, True], [True, True, True]])


def test_positions_count_from_the_first_real_token():
    assert prompt_positions(MASK).tolist() == [[0, 0, 1], [0, 1, 2]]


def test_padding_sees_itself_only():
    assert causal_mask(MASK)[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]


def test_branches_do_not_see_each_other():
    branch, place = torch.tensor([[0, 0, 1, 1]] * 2), torch.tensor([[0, 1, 0, 1]] * 2)
    mask = branch_mask(MASK, branch, place)[0, 0]
    assert mask[3].tolist() == [False, True, True, True, False, False, False]
    assert mask[4].tolist() == [False, True, True, True, True, False, False]
    assert mask[6].tolist() == [False, True, True, False, False, True, True]
    assert not mask[:3, 3:].any()


def test_segments_of_a_packed_row_do_not_see_each_other():
    mask = packed_mask(torch.tensor([[0, 0, 1, -1]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_a_beam_sees_its_ancestors():
    first = grown_mask(MASK[:1, None], torch.tensor([[0, 0, 0]]))
    second = grown_mask(first, torch.tensor([[1, 0]]))
    assert second[0].tolist() == [
        [False, True, True, False, True, False, True, False],
        [False, True, True, True, False, False, False, True],
    ]


def test_padding_moves_to_the_left_and_empty_columns_go():
    tokens = torch.tensor([[7, 0, 8, 0, 0], [1, 2, 0, 3, 0]])
    moved, mask = left_padded(tokens, tokens > 0)
    assert moved.tolist() == [[0, 7, 8], [1, 2, 3]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]


def parts(rows: int, *lengths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(rows, 2, n, 3, generator=generator), torch.randn(rows, 2, n, 4, generator=generator))
        for n in lengths
    ]


def test_tokens_stand_where_transformers_puts_them_and_nothing_is_copied():
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


def test_rows_are_selected_and_grow_on():
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


def test_layers_with_a_window_keep_their_own_kind():
    cache = model_cache(
        config(use_sliding_window=True, sliding_window=4, max_window_layers=2), lambda: ReservedLayer(7)
    )
    assert [type(layer) for layer in cache.layers] == [ReservedLayer, ReservedLayer, DynamicSlidingWindowLayer]
    assert isinstance(cache, DynamicCache)
    whole = tree_cache(config(use_sliding_window=True, sliding_window=4, max_window_layers=2), room=7)
    assert [type(layer) for layer in whole.layers] == [ReservedLayer] * 3


def test_a_shared_prompt_is_repeated_when_rows_add_their_own():
    own, theirs = SharedLayer(), DynamicLayer()
    (first, more) = parts(2, 4)[0], parts(6, 2)[0]
    for layer in (own, theirs):
        layer.update(*first)
        layer.batch_repeat_interleave(3)
        assert layer.get_seq_length() == 4
        layer.update(*more)
    assert_same(own.keys, theirs.keys)
    assert_same(own.values, theirs.values)


def behind(policy: Policy, owners: list[int]) -> SharedPrompt:
    prompts = make_prompts(policy)
    tokens, mask = right_padded(prompts.tokens, prompts.mask)
    cache = tree_cache(policy.base.config, tokens.shape[1])
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    hidden = policy(tokens, None, places, lambda hidden, _: hidden, cache=cache)
    shared = SharedPrompt(cache, mask, hidden.dtype)
    shared.serve(torch.tensor(owners))
    return shared


@torch.no_grad()
@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4], [0, 0, 0, 1, 3, 3], [2, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]])
@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_attention_to_the_prompt_and_to_the_own_tokens(owners, groups):
    policy = make_policy().double()
    shared = behind(policy, owners)
    prompts = make_prompts(policy)
    draw = torch.Generator().manual_seed(0)
    rows, own, heads, width = len(owners), 4, 2, 16
    query = torch.randn(rows, heads * groups, 1, width, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, rows, heads, own, width, generator=draw, dtype=torch.float64)
    module: Any = SimpleNamespace(layer_idx=1)
    found, _ = shared_attention(module, query, key, value, None, 0.3, shared)
    assert found.shape == (rows, 1, heads * groups, width)
    for row, owner in enumerate(owners):
        length = int(prompts.mask[owner].sum())
        for head in range(heads * groups):
            place = head // groups
            keys = torch.cat([shared.layers[1][0][owner, place, :, :length].T, key[row, place]])
            values = torch.cat([shared.layers[1][1][owner, place, :length], value[row, place]])
            weights = (keys @ query[row, head, 0] * 0.3).softmax(0)
            assert_same(found[row, 0, head], weights @ values)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", *sorted(ARCHITECTURES)])
def test_states_are_those_of_rows_with_a_prompt_each(name, tmp_path):
    policy = make_policy() if name == "tiny" else make_policy(local_config(save_local_model(tmp_path, name)))
    prompts = make_prompts(policy)
    kinds = [type(grow(policy, prompts, 3, 5, apart=True)), Copied]
    assert kinds[0] is Shared
    sharing, cached = (kind(policy, prompts.tokens, prompts.mask, 3, 5, "legal", apart=True) for kind in kinds)
    assert_same(sharing.begin(states), cached.begin(states))
    tokens = torch.randint(4, 60, (5, 3, 5), generator=torch.Generator().manual_seed(0))
    live = torch.ones(15, dtype=torch.bool)
    for place in range(5):
        live = live & (torch.arange(15) % 4 != place - 1)
        found, wanted = (
            rows.extend(tokens[:, :, place], states, live=live.view(5, 3))[live] for rows in (sharing, cached)
        )
        assert_same(found, wanted)
        if live.sum() < 13:
            assert len(sharing.owners) < 15
        if not live.any():
            break


@torch.no_grad()
def test_the_first_step_may_already_have_fewer_rows():
    policy = make_policy()
    prompts = make_prompts(policy)
    live, found = torch.arange(10).view(5, 2) < 3, []
    for kind in (Shared, Copied):
        rows = kind(policy, prompts.tokens, prompts.mask, 2, 3, "legal", apart=True)
        rows.begin(states)
        found.append(rows.extend(torch.arange(10).view(5, 2) + 5, states, live=live)[:3])
        assert rows.owners.tolist() == [0, 0, 1]
    assert_same(found[0], found[1])


@torch.no_grad()
def test_it_works_under_mixed_precision():
    policy = make_policy()
    prompts = make_prompts(policy)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for kind in (Shared, Copied):
            rows = kind(policy, prompts.tokens, prompts.mask, 2, 3, "legal")
            rows.begin(states)
            found.append(rows.extend(torch.arange(10).view(5, 2) + 5, states).float())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.05


def test_the_model_attends_as_before_afterwards():
    policy = make_policy()
    before = policy.decoder.config._attn_implementation
    with shared_prompts(policy.decoder.config):
        assert policy.decoder.config._attn_implementation != before
    assert policy.decoder.config._attn_implementation == before
    with pytest.raises(TypeError), shared_prompts(policy.decoder.config):
        policy(
            torch.zeros(2, 1, dtype=torch.int64),
            None,
            torch.zeros(2, 1, dtype=torch.int64),
            lambda hidden, _: hidden,
            "legal",
            tree_cache(policy.base.config, 1),
        )
    assert policy.decoder.config._attn_implementation == before


def test_layers_with_a_window_keep_their_own_caches(tmp_path):
    folder = save_local_model(tmp_path, "qwen3", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    policy = make_policy(local_config(folder))
    policy.branching = "expand"
    assert "share" in wrong_ways(policy, 7)
    assert "share" not in wrong_ways(policy, 6)


@pytest.mark.parametrize("answer", ["refuse", "ignore"])
def test_a_model_that_attends_in_its_own_way_is_found_out(answer, monkeypatch):
    policy = make_policy().train()
    original = type(policy).forward
    tried = []

    def foreign(self: Policy, *arguments: Any, **options: Any) -> Tensor:
        if "shared" in options:
            tried.append(1)
            if answer == "refuse":
                raise TypeError("unexpected keyword argument 'shared'")
            self.decoder.config._attn_implementation = "sdpa"
        options.pop("shared", None)
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(policy), "forward", foreign)
    assert list(wrong_ways(policy, 20)) == ["share"]
    once = len(tried)
    assert list(wrong_ways(policy, 20)) == ["share"]
    assert len(tried) == once
    assert policy.training
    prompts = make_prompts(policy)
    assert type(grow(policy, prompts, 3, 5, apart=True)) is Copied
