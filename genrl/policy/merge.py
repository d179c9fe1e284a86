"""A trained policy as one ordinary model of transformers: adapters in their weights, 4-bit weights written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genrl.config.schema import ModelConfig
from genrl.policy.load import load_weights
from genrl.policy.model import Policy, PolicySpec


def unquantised(policy: Policy, config: ModelConfig, spec: PolicySpec) -> Policy:
    """The same policy, trained weights included, around base weights as they were before they became 4-bit ones.

    Args:
        policy: with 4-bit weights.
        config: the model section that it was made from.
        spec: the same.
    """
    plain = load_weights(replace(config, quantize="none"), spec)
    plain.load_state(policy.state(), "the policy")
    return plain.eval()


def write_out(policy: Policy, plain: Policy) -> None:
    """Put the numbers that 4-bit weights stand for into the weights of the policy that `unquantised` gave."""
    for name, weight in _dequantised(policy).items():
        plain.get_parameter(name).data.copy_(weight)


def merged(policy: Policy) -> Any:  # noqa: ANN401 (transformers is untyped)
    """The model of a policy with adapters W + alpha / rank B A (LoRA, arXiv:2106.09685) and trained rows put in.

    Of a policy without adapters it is the model itself. The policy is used up: its adapters act no more. Sums are
    rounded once, to the precision of the weights.
    """
    return policy.model.merge_and_unload() if policy.base is not policy.model else policy.model


def _dequantised(policy: Policy) -> dict[str, Tensor]:
    """Name of each 4-bit weight -> the numbers that it stands for, W[i] = scale[block of i] level[code i].

    QLoRA (arXiv:2305.14314), equation 5; the scales are 8-bit codes themselves.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    found: dict[str, Tensor] = {}
    for path, module in policy.named_modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            found[f"{path}.weight"] = dequantize_4bit(weight.data, weight.quant_state)
    return found


@torch.no_grad()
def log_probs(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [n, V] of the whole vocabulary behind each token of prompts [P, L] but padding."""
    logits: Tensor = model(input_ids=tokens, attention_mask=mask.long()).logits
    return logits[mask].float().log_softmax(-1)
