import pytest
import torch

from genrl.config.schema import LoraConfig
from genrl.policy.load import load_policy
from genrl.policy.merge import log_probs, merged, unquantised, write_out
from tests.helpers import assert_same
from tests.models import SIZES, TEXTS, local_config, save_local_model

LORA = LoraConfig(rank=4, alpha=8)
TOKENS = torch.tensor([[0, 1, 5, 7], [1, 9, 4, 2]])
MASK = TOKENS > 0


def trained(config):
    """A policy and its specification; what is trained differs from what it began with."""
    from genrl.policy.load import load_spec, load_weights

    spec = load_spec(config, SIZES, TEXTS)
    policy = load_weights(config, spec).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return policy, spec


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_merged_model_says_what_the_policy_says(tmp_path, tied, quantize):
    """4-bit weights are written out as the numbers they stand for: only the order of sums differs."""
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = save_local_model(tmp_path, hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    config = local_config(folder, lora=LORA, quantize=quantize)
    policy, spec = trained(config)
    wanted = log_probs(policy.base, TOKENS, MASK)
    assert wanted.shape == (7, policy.base.get_output_embeddings().weight.shape[0])
    if quantize == "nf4":
        plain = unquantised(policy, config, spec)
        other = float((log_probs(plain.base, TOKENS, MASK) - wanted).abs().mean())
        assert other > 1e-3  # what quantisation changed
        write_out(policy, plain)
        policy = plain
    model = merged(policy)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "trainable" in name]
    assert_same(log_probs(model, TOKENS, MASK), wanted, 1e-4)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_without_adapters_the_model_is_merged_already(tmp_path):
    policy = load_policy(local_config(save_local_model(tmp_path)), SIZES, TEXTS)
    assert merged(policy) is policy.model
