from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from genrl.errors import CheckpointError, UnsupportedError
from genrl.policy.model import HEAD_TRANSFORMS, Policy
from genrl.policy.tree import causal_mask, prompt_positions
from tests.helpers import assert_same
from tests.models import SIZES, make_policy, make_prompts


def hidden_states(policy: Policy) -> Tensor:
    prompts = make_prompts(policy)
    with torch.no_grad():
        return policy.hidden(prompts.tokens, causal_mask(prompts.mask), prompt_positions(prompts.mask))


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1)


def test_hidden_states_are_those_of_the_whole_model() -> None:
    policy = make_policy()
    prompts = make_prompts(policy)
    with torch.no_grad():
        wanted = policy.model(prompts.tokens[:1]).logits  # the first prompt has no padding
    assert_same(policy.logits(hidden_states(policy)[:1]), wanted)


def test_a_cache_continues_where_the_prompt_ended() -> None:
    policy = make_policy()
    tokens = make_prompts(policy).tokens[:1]
    whole = hidden_states(policy)[:1]
    cache = DynamicCache()
    seen = torch.ones(1, 11, dtype=torch.bool)
    with torch.no_grad():
        first = policy.hidden(tokens[:, :7], causal_mask(seen[:, :7]), torch.arange(7)[None], cache)
        rest = policy.hidden(tokens[:, 7:], causal_mask(seen)[:, :, 7:], torch.arange(7, 11)[None], cache)
    assert_same(torch.cat([first, rest], dim=1), whole)


@pytest.mark.parametrize("bias", [False, True])
def test_some_rows_of_the_head_are_a_slice_of_all(bias: bool) -> None:
    policy = make_policy()
    if bias:
        head = policy.base.lm_head
        policy.base.lm_head = nn.Linear(head.in_features, head.out_features)
    hidden = hidden_states(policy)
    first, size = policy.first_ids[1], SIZES[1]
    with torch.no_grad():
        assert_same(
            policy.head(first, size).logits(hidden, first, size), policy.logits(hidden)[..., first : first + size]
        )
        assert_same(policy.logits(hidden), policy.base.lm_head(hidden))
        assert policy.head_for("legal").logits(hidden.bfloat16(), first, size).dtype == torch.float32


def test_the_state_is_a_copy_of_what_is_trained() -> None:
    policy = make_policy()
    frozen = next(iter(policy.trainable()))
    dict(policy.model.named_parameters())[frozen].requires_grad_(False)
    state = policy.state()
    assert set(state) == set(policy.trainable())
    assert frozen not in state
    before = {name: value.clone() for name, value in state.items()}
    nudge(policy)
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state, name: state.pop(name), r"w: these weights belong to another model: 1 missing \({name}"),
        (lambda state, name: state.update(more=torch.zeros(1)), r"1 unknown \(more"),
        (lambda state, name: state.update({name: torch.zeros(1)}), r"1 of another shape \({name}"),
    ],
)
def test_foreign_weights_are_refused_and_nothing_is_loaded(spoil: object, message: str) -> None:
    policy = make_policy()
    own = policy.state()
    foreign = {name: value + 1 for name, value in own.items()}
    name = sorted(own)[0]
    spoil(foreign, name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message.format(name=name)):
        policy.load_state(foreign, "w")
    assert all(torch.equal(value, own[name]) for name, value in policy.state().items())


def test_without_a_reference_there_is_none() -> None:
    policy = make_policy()
    assert policy.reference_state() == {}
    with pytest.raises(UnsupportedError, match="no reference policy was kept"), policy.reference():
        pass


def test_the_reference_is_left_whatever_happens_inside() -> None:
    policy = make_policy()
    policy.keep_reference()
    reference = hidden_states(policy)
    nudge(policy)
    moved = hidden_states(policy)
    parameters = list(policy.trainable().values())

    def fail() -> None:
        with policy.reference():
            assert_same(hidden_states(policy), reference)
            assert not torch.is_grad_enabled()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert_same(hidden_states(policy), moved)
    assert all(own is before for own, before in zip(policy.trainable().values(), parameters, strict=True))
    nudge(policy)
    with policy.reference():
        assert_same(hidden_states(policy), reference)


@pytest.mark.parametrize("name", HEAD_TRANSFORMS)
def test_a_model_that_transforms_its_logits_is_refused(name: str) -> None:
    policy = make_policy()
    setattr(policy.base.config, name, 1.0)
    Policy(policy.model, policy.tokenizer, policy.first_ids, SIZES, 1, ())
    setattr(policy.base.config, name, 30.0)
    with pytest.raises(UnsupportedError, match=rf"Qwen3ForCausalLM transforms its logits \({name}\)"):
        Policy(policy.model, policy.tokenizer, policy.first_ids, SIZES, 1, ())


def test_a_compiled_policy_computes_the_same() -> None:
    policy = make_policy()
    prompts = make_prompts(policy)
    mask, positions = causal_mask(prompts.mask), prompt_positions(prompts.mask)

    def gradient() -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        hidden = policy.hidden(prompts.tokens, mask, positions)
        hidden.square().sum().backward()
        return hidden.detach(), policy.decoder.layers[0].mlp.up_proj.weight.grad

    wanted = gradient()
    names = set(policy.state_dict())
    traced: list[int] = []
    policy.compile_decoder(backend=lambda graph, _: traced.append(len(graph.graph.nodes)) or graph.forward)
    found = gradient()
    assert traced
    assert max(traced) > 50
    assert_same(found[0], wanted[0])
    assert_same(found[1], wanted[1])
    assert set(policy.state_dict()) == names
    with policy_reference(policy):
        assert_same(policy.hidden(prompts.tokens, mask, positions), wanted[0])
    nudge(policy)
    assert not torch.allclose(policy.hidden(prompts.tokens, mask, positions), wanted[0])  # weights are no constants


@contextmanager
def policy_reference(policy: Policy) -> Iterator[None]:
    policy.keep_reference()
    with policy.reference():
        yield


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"layer_types": ["full_attention", "full_attention"], "sliding_window": 64}, None),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}, 64),
        ({"layer_types": ["chunked_attention"], "attention_chunk_size": 32}, 32),
    ],
)
def test_the_window_is_read_from_the_configuration(changes: dict[str, object], window: int | None) -> None:
    policy = make_policy()
    config = PretrainedConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    policy.base.config = config
    assert policy.window == window


def test_work_counts_what_a_token_costs() -> None:
    policy = make_policy()  # 2 layers, width 32, 2 heads of 16, feed-forward 48
    assert policy.work.token == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert policy.work.pair == policy.work.cached == 2 * 2 * 32


def test_the_reference_is_not_computed_with_casts_of_other_weights() -> None:
    policy = make_policy()
    policy.keep_reference()
    prompts = make_prompts(policy)
    mask, positions = causal_mask(prompts.mask), prompt_positions(prompts.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16), policy.reference():
        wanted = policy.hidden(prompts.tokens, mask, positions)
    nudge(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = policy.hidden(prompts.tokens, mask, positions)
        with policy.reference():
            found = policy.hidden(prompts.tokens, mask, positions)
        again = policy.hidden(prompts.tokens, mask, positions)
    assert_same(found, wanted)
    assert_same(again, moved)


def test_checkpointing_refuses_layers_that_drop_out_by_themselves() -> None:
    policy = make_policy()
    policy.decoder.layers[1].dropout = 0.1
    with pytest.raises(UnsupportedError, match=r"layers of Qwen3ForCausalLM drop out by themselves"):
        policy.checkpoint_activations()
    policy = make_policy()
    type(policy.base).supports_gradient_checkpointing = False
    try:
        with pytest.raises(UnsupportedError, match=r"Qwen3ForCausalLM has no activation checkpointing"):
            policy.checkpoint_activations()
    finally:
        del type(policy.base).supports_gradient_checkpointing
