from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.policy.branches import CachedRows, SharingRows, grow_rows
from genrl.policy.cache import tree_cache
from genrl.policy.model import Policy, states
from genrl.policy.sharing import SharedPrompt, can_share, shared_attention
from tests.helpers import assert_same
from tests.models import ARCHITECTURES, local_config, make_policy, make_prompts, save_local_model


def behind(policy: Policy, owners: list[int]) -> SharedPrompt:
    prompts = make_prompts(policy)
    return SharedPrompt(policy, prompts.tokens, prompts.mask, torch.tensor(owners))


@torch.no_grad()
@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4], [0, 0, 0, 1, 3, 3], [2, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]])
@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_attention_to_the_prompt_and_to_the_own_tokens(owners: list[int], groups: int) -> None:
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
def test_states_are_those_of_rows_with_a_prompt_each(name: str, tmp_path: Path) -> None:
    policy = make_policy() if name == "tiny" else make_policy(local_config(save_local_model(tmp_path, name)))
    prompts = make_prompts(policy)
    arguments = (policy, prompts.tokens, prompts.mask, 3, 5)
    sharing = grow_rows(*arguments)
    assert type(sharing) is SharingRows
    cached = CachedRows(*arguments, "legal")
    assert_same(sharing.prefill(states), cached.prefill(states))
    tokens = torch.randint(4, 60, (15, 5), generator=torch.Generator().manual_seed(0))
    live = torch.arange(15)
    for place in range(5):
        going = (torch.arange(len(live)) % 4 != place) if place else None
        live = live if going is None else live[going]
        found, wanted = (rows.extend(tokens[live, place], states, going) for rows in (sharing, cached))
        assert_same(found, wanted)
    assert len(sharing.prompts) < 15


@torch.no_grad()
def test_the_first_step_may_already_have_fewer_rows() -> None:
    policy = make_policy()
    prompts = make_prompts(policy)
    arguments = (policy, prompts.tokens, prompts.mask, 2, 3)
    going = torch.arange(10) < 3
    found = []
    for kind in (SharingRows, CachedRows):
        rows = kind(*arguments, "legal")
        rows.prefill(states)
        found.append(rows.extend(torch.tensor([7, 8, 9]), states, going))
    assert_same(found[0], found[1])


@torch.no_grad()
def test_it_works_under_mixed_precision() -> None:
    policy = make_policy()
    prompts = make_prompts(policy)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for kind in (SharingRows, CachedRows):
            rows = kind(policy, prompts.tokens, prompts.mask, 2, 3, "legal")
            rows.prefill(states)
            found.append(rows.extend(torch.arange(10) + 5, states).float())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.05


def test_the_model_attends_as_before_afterwards() -> None:
    policy = make_policy()
    before = policy.decoder.config._attn_implementation
    shared = behind(policy, [0, 1])
    with shared.attended():
        assert policy.decoder.config._attn_implementation != before
    assert policy.decoder.config._attn_implementation == before
    with pytest.raises(TypeError), shared.attended():
        policy(
            torch.zeros(2, 1, dtype=torch.int64),
            None,
            torch.zeros(2, 1, dtype=torch.int64),
            states,
            "legal",
            tree_cache(policy.base.config, 1),
        )
    assert policy.decoder.config._attn_implementation == before


def test_layers_with_a_window_keep_their_own_caches(tmp_path: Path) -> None:
    folder = save_local_model(tmp_path, "qwen3", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    policy = make_policy(local_config(folder))
    assert not can_share(policy, 7)
    assert can_share(policy, 6)


@pytest.mark.parametrize("answer", ["refuse", "ignore"])
def test_a_model_that_attends_in_its_own_way_is_found_out(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not can_share(policy, 20)
    assert not can_share(policy, 20)
    assert len(tried) == 1
    assert policy.training
    prompts = make_prompts(policy)
    assert type(grow_rows(policy, prompts.tokens, prompts.mask, 3, 5)) is CachedRows
