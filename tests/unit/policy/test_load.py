from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genrl.config.schema import LoraConfig, ModelConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.policy.load import add_sid_tokens, load_policy
from genrl.policy.model import Policy
from tests.helpers import assert_same
from tests.models import SIZES, TEXTS, TINY, local_config, make_policy, save_local_model

LORA = LoraConfig(rank=4, alpha=8)


def forward(policy: Policy) -> torch.Tensor:
    tokens = torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        return policy.head_for("legal").logits(
            policy.hidden(tokens, mask, torch.arange(4)[None]), policy.first_ids[0], SIZES[0]
        )


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))


def test_sid_tokens_of_a_level_are_contiguous_and_survive_the_tokenizer() -> None:
    policy = make_policy()
    ids = policy.tokenizer("red apple<a_3><b_0><c_6>", add_special_tokens=False)["input_ids"]
    first = policy.first_ids
    assert ids[-3:] == [first[0] + 3, first[1], first[2] + 6]
    assert [first[1] - first[0], first[2] - first[1]] == [SIZES[0], SIZES[1]]
    assert policy.tokenizer.decode(ids[:-3]).strip() == "red apple"


def test_a_tokenizer_made_for_another_sid_table_is_refused() -> None:
    tokenizer = make_policy().tokenizer
    with pytest.raises(ConfigError, match="another SID table"):
        add_sid_tokens(tokenizer, (SIZES[0] + 1, SIZES[1], SIZES[2]))


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone() -> None:
    state = torch.get_rng_state()
    one, two = load_policy(TINY, SIZES, TEXTS), load_policy(TINY, SIZES, TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state().items():
        assert torch.equal(value, two.state()[name])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"vocab_size": 400}])
def test_a_local_model_gets_rows_for_the_sids(tmp_path: Path, changes: dict[str, object]) -> None:
    policy = load_policy(local_config(save_local_model(tmp_path, **changes)), SIZES, TEXTS, "history:")
    assert policy.prefix_ids
    assert torch.isfinite(forward(policy)).all()
    rows = policy.base.get_input_embeddings().weight.detach()
    assert rows.shape[0] >= policy.first_ids[-1] + SIZES[-1]
    sid_rows = rows[policy.first_ids[0] : policy.first_ids[-1] + SIZES[-1]]
    assert 0.3 < float(sid_rows.std() / rows[: policy.first_ids[0]].std()) < 3


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_sid_rows_and_nothing_else(tmp_path: Path, tied: bool) -> None:
    folder = save_local_model(tmp_path, tie_word_embeddings=tied)
    policy = load_policy(local_config(folder, lora=LORA), SIZES, TEXTS)
    names = policy.trainable()
    assert names
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    before = forward(policy)
    rows = [value for name, value in names.items() if "trainable_tokens" in name]
    assert rows
    assert all(value.shape[0] == sum(SIZES) for value in rows)
    with torch.no_grad():
        rows[-1].mul_(2.0)  # head rows must be those that are trained
    assert (forward(policy) - before).abs().max() > 1e-3
    full = policy.model(torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])).logits
    assert_same(forward(policy), full[..., policy.first_ids[0] : policy.first_ids[0] + SIZES[0]])


@pytest.mark.parametrize("lora", [LoraConfig(), LORA])
def test_the_reference_is_what_the_policy_was(tmp_path: Path, lora: LoraConfig) -> None:
    policy = load_policy(local_config(save_local_model(tmp_path), lora=lora), SIZES, TEXTS)
    nudge(policy)
    before = forward(policy)
    policy.keep_reference()
    nudge(policy)
    after = forward(policy)
    assert (after - before).abs().max() > 1e-3
    with policy.reference():
        assert_same(forward(policy), before)
    assert_same(forward(policy), after)


def test_saved_weights_come_back_and_those_of_another_model_are_refused() -> None:
    policy, other = make_policy(), make_policy()
    nudge(policy)
    other.load_state(policy.state(), "weights")
    assert_same(forward(other), forward(policy))
    wider = make_policy(ModelConfig(hidden=48, layers=2, heads=2, feed_forward=48, vocabulary=320))
    with pytest.raises(CheckpointError, match="another model"):
        wider.load_state(policy.state(), "weights")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither 'tiny' nor a folder"):
        load_policy(local_config(tmp_path / "nowhere"), SIZES, TEXTS)


def test_a_folder_with_a_damaged_model_is_named(tmp_path: Path) -> None:
    folder = save_local_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="does not load"):
        load_policy(local_config(folder), SIZES, TEXTS)


def test_nf4_trains_the_same_after_a_rollout_in_eval_mode(tmp_path: Path) -> None:
    """On CPUs with avx512_bf16 bitsandbytes repacks weights in eval mode, which ruins every later gradient."""
    pytest.importorskip("bitsandbytes")
    folder = save_local_model(tmp_path, hidden_size=64, intermediate_size=128)
    config = local_config(folder, lora=LORA, quantize="nf4")
    gradients = []
    for rollout_first in (False, True):
        policy = load_policy(config, SIZES, TEXTS)
        nudge(policy)
        if rollout_first:
            policy.eval()
            forward(policy)
        policy.train()
        tokens = torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])
        hidden = policy.hidden(tokens, torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(), torch.arange(4)[None])
        policy.head_for("legal").logits(hidden, policy.first_ids[0], SIZES[0]).log_softmax(-1)[..., 0].sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in policy.trainable().values()]))
    assert float(gradients[0].norm()) > 0
    assert_same(gradients[1], gradients[0])
    quantized = [m for m in policy.model.modules() if type(m).__name__ == "Linear4bit"]
    assert quantized
