import pytest
import torch
from torch import Tensor

from genrl.config.schema import LoraConfig
from genrl.policy.attention import causal_mask, prompt_positions
from genrl.policy.model import Policy, states
from genrl.policy.reference import Reference
from tests.helpers import assert_same
from tests.models import local_config, make_policy, make_prompts, save_local_model


def hidden_states(policy: Policy | Reference) -> Tensor:
    prompts = make_prompts(policy)
    return policy(prompts.tokens, causal_mask(prompts.mask), prompt_positions(prompts.mask), states)


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_stays_and_the_policy_moves(tmp_path, rank):
    policy = make_policy(local_config(save_local_model(tmp_path), lora=LoraConfig(rank=rank)))
    before = hidden_states(policy).detach()
    reference = Reference(policy)
    nudge(policy)
    moved = hidden_states(policy).detach()
    assert float((moved - before).abs().max()) > 1e-3
    parameters = {name: (value, value.clone()) for name, value in policy.trainable().items()}
    found = hidden_states(reference)
    assert_same(found, before)
    assert not found.requires_grad
    assert_same(hidden_states(policy), moved)
    for name, value in policy.trainable().items():
        assert value is parameters[name][0]
        assert torch.equal(value, parameters[name][1])


def test_it_is_not_computed_with_casts_of_other_weights():
    policy = make_policy()
    reference = Reference(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = hidden_states(reference)
    nudge(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = hidden_states(policy)
        found = hidden_states(reference)
        again = hidden_states(policy)
    assert_same(found, wanted)
    assert_same(again, moved)


def test_only_what_is_trained_is_copied():
    policy = make_policy()
    for value in policy.decoder.layers.parameters():
        value.requires_grad_(False)
    assert set(Reference(policy).weights) == set(policy.trainable())


def test_adapters_of_tied_tables_are_the_policy_s_own_afterwards(tmp_path):
    folder = save_local_model(tmp_path, "qwen3", tie_word_embeddings=True)
    policy = make_policy(local_config(folder, lora=LoraConfig(rank=4)))
    before = policy.trainable()
    hidden_states(Reference(policy))
    after = policy.trainable()
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
