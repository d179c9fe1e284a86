import pytest
import torch
from torch import nn

from genrl.config.schema import LoraConfig
from genrl.policy.load import load_outline, load_spec, load_weights
from genrl.policy.memory import NF4, inference, model_of, training
from tests.models import SIZES, TEXTS, local_config, save_local_model

OFF = {"quantised": False, "mixed": False, "checkpointing": False, "dropout": False}


def outline(folder, **changes):
    config = local_config(folder, **changes)
    spec = load_spec(config, SIZES, TEXTS)
    return load_outline(config, spec), config, spec


@pytest.mark.parametrize("lora", [0, 4])
def test_an_outline_has_the_shapes_of_the_policy_and_what_autograd_keeps_of_it(tmp_path, lora):
    """The bytes per token are those that a real pass keeps, tensor by tensor."""
    folder = save_local_model(tmp_path, "qwen3")
    policy, config, spec = outline(folder, lora=LoraConfig(rank=lora))
    real = load_weights(config, spec).eval()
    shapes = {name: (value.shape, value.dtype, value.requires_grad) for name, value in real.model.named_parameters()}
    assert shapes == {n: (v.shape, v.dtype, v.requires_grad) for n, v in policy.model.named_parameters()}
    assert {value.device.type for value in policy.parameters()} == {"meta"}
    model = model_of(policy, **OFF)
    own = {value.untyped_storage().data_ptr() for value in real.parameters()}

    def kept(length: int) -> int:
        held = {}

        def keep(value):
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage
            return value

        tokens = torch.zeros(1, length, dtype=torch.int64)
        mask = torch.zeros(1, 1, length, length)
        own.add(mask.untyped_storage().data_ptr())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            end = real.decoder(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
        found = sum(storage.nbytes() for storage in held.values())
        del end
        return found

    wanted = (kept(48) - kept(16)) / 32
    assert model.kept == pytest.approx(wanted, rel=0.15)


def test_bytes_of_weights_gradients_and_means(tmp_path):
    folder = save_local_model(tmp_path, "qwen3", hidden_size=64, intermediate_size=128)
    policy, *_ = outline(folder)
    count = sum(value.numel() for value in policy.parameters())
    full = model_of(policy, **OFF)
    assert (full.held.weights, full.held.adapters, full.held.gradients) == (4 * count, 0, 4 * count)
    assert full.means("adamw") == 8 * count
    matrices = sum(policy.model.get_parameter(name).numel() for name in policy.matrices)
    assert full.means("muon") == 8 * count - 4 * matrices
    adapted, *_ = outline(folder, lora=LoraConfig(rank=4), quantize="nf4")
    packed = [
        module.base_layer.weight.numel()
        for module in adapted.decoder.modules()
        if isinstance(getattr(module, "base_layer", None), nn.Linear)
    ]
    assert len(packed) == 14
    found = model_of(adapted, **{**OFF, "quantised": True})
    trained = sum(value.numel() for value in adapted.trainable().values())
    rest = sum(value.numel() for value in adapted.parameters()) - trained - sum(packed)
    assert found.held.adapters == 4 * trained
    assert found.held.weights == pytest.approx(NF4 * sum(packed) + 4 * rest)
    assert found.unpacked == 4 * max(packed)
    assert found.means("paged_adamw_8bit") == found.means("adamw")  # none of the tensors has 4,096 values
    large = sum(value.numel() for value in policy.parameters() if value.numel() >= 4096)
    assert full.means("paged_adamw_8bit") == pytest.approx(8 * (count - large) + 2 * (1 + 4 / 256) * large)


def test_what_lowers_memory_lowers_it(tmp_path):
    folder = save_local_model(tmp_path, "qwen3", num_hidden_layers=4)
    policy, *_ = outline(folder)
    full, mixed = model_of(policy, **OFF), model_of(policy, **{**OFF, "mixed": True})
    saving = model_of(policy, **{**OFF, "checkpointing": True})

    def step(model, passes: int = 1) -> float:
        return training(model, "align", "adamw", 10_000, 0.0, 0.0, passes=passes, copies=1.0).total

    assert step(saving) < 0.5 * step(full)
    assert step(mixed) < step(full)
    assert step(full, passes=2) > step(full)
    ranked = inference(full, "rankings", "", 1000, 5000, 0.0, 0.0)
    assert ranked.optimiser == 0
    assert ranked.cache == 5000 * policy.work.cached * 4
