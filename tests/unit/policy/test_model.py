import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from genrl.errors import CheckpointError, UnsupportedError
from genrl.policy.attention import causal_mask, prompt_positions
from genrl.policy.load import load_spec
from genrl.policy.model import HEAD_TRANSFORMS, Policy, states
from genrl.policy.reference import Reference
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.share import WAYS
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import (
    SIZES,
    TEXTS,
    TINY,
    head_of,
    local_config,
    logits,
    make_layout,
    make_policy,
    make_prompts,
    make_thinking,
    save_local_model,
    shut,
)
from tests.runs import flat_gradient


def hidden_states(policy: Policy) -> Tensor:
    prompts = make_prompts(policy)
    with torch.no_grad():
        return policy(prompts.tokens, causal_mask(prompts.mask), prompt_positions(prompts.mask), states)


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1)


@pytest.mark.parametrize("bias", [False, True])
def test_some_rows_of_the_head_are_a_slice_of_all(bias):
    policy = make_policy()
    if bias:
        head = policy.base.lm_head
        policy.base.lm_head = nn.Linear(head.in_features, head.out_features)
    hidden = hidden_states(policy)
    first, size = policy.first_ids[1], SIZES[1]
    with torch.no_grad():
        some = head_of(policy).cut(first, size).logits(hidden, first, size)
        assert_same(some, logits(policy, hidden)[..., first : first + size])
        assert_same(logits(policy, hidden), policy.base.lm_head(hidden))
        assert head_of(policy, "legal").logits(hidden.bfloat16(), first, size).dtype == torch.float32


def test_the_state_is_a_copy_of_what_is_trained():
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
def test_foreign_weights_are_refused_and_nothing_is_loaded(spoil, message):
    policy = make_policy()
    own = policy.state()
    foreign = {name: value + 1 for name, value in own.items()}
    name = sorted(own)[0]
    spoil(foreign, name)
    with pytest.raises(CheckpointError, match=message.format(name=name)):
        policy.load_state(foreign, "w")
    assert all(torch.equal(value, own[name]) for name, value in policy.state().items())


@pytest.mark.parametrize("name", HEAD_TRANSFORMS)
def test_a_model_that_transforms_its_logits_is_refused_before_it_is_loaded(tmp_path, name):
    folder = save_local_model(tmp_path, "qwen3", **{name: 1.0})
    (folder / "model.safetensors").unlink()
    load_spec(local_config(folder), SIZES, TEXTS)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, name: 30.0}))
    with pytest.raises(UnsupportedError, match=rf"Qwen3ForCausalLM transforms its logits \({name}\)"):
        load_spec(local_config(folder), SIZES, TEXTS)


def test_a_compiled_policy_computes_the_same():
    policy = make_policy(replace(TINY, layers=1))
    prompts = make_prompts(policy)
    mask, positions = causal_mask(prompts.mask), prompt_positions(prompts.mask)

    def gradient() -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        hidden = policy(prompts.tokens, mask, positions, states)
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
    reference = Reference(policy)
    nudge(policy)
    assert not torch.allclose(policy(prompts.tokens, mask, positions, states), wanted[0])  # weights are no constants
    assert_same(reference(prompts.tokens, mask, positions, states), wanted[0])


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
def test_the_window_is_read_from_the_configuration(changes, window):
    policy = make_policy()
    config = PretrainedConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    policy.base.config = config
    assert policy.window == window


def test_work_counts_what_a_token_costs():
    policy = make_policy()  # 2 layers, width 32, 2 heads of 16, feed-forward 48
    assert policy.work.token == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert policy.work.pair == policy.work.cached == 2 * 2 * 32


def test_checkpointing_refuses_layers_that_drop_out_by_themselves():
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


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_weights_are_read_inside_the_forward_pass_alone(way, thinks):
    policy = make_policy(thinking=thinks)
    layout = make_thinking(policy, budget=2, order="interleaved") if thinks else make_layout(policy)
    prompts, noise = make_prompts(policy), torch.rand(5, 4, layout.length, generator=torch.Generator().manual_seed(0))
    policy.branching = way

    def everything() -> list[Tensor]:
        drawn = write(policy, layout, prompts, 4, noise=noise)
        ranking, _ = search(policy, layout, prompts, 6)
        scores = score(policy, layout, prompts, drawn)
        policy.zero_grad()
        scores.logps.sum().backward()
        held = score(reference, layout, prompts, drawn)
        return [drawn.logps, ranking.scores, scores.logps, held.logps, flat_gradient(policy)]

    reference = Reference(policy)
    wanted = everything()
    with shut(policy):
        policy.refused_ways.clear()
        assert all(bool(value.isnan().all()) for value in policy.parameters())
        found = everything()
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
