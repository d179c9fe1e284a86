"""Low precision: bfloat16 is near float32, and 4-bit weights hand gradients on as the weights they stand for."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from genrl.errors import UnsupportedError
from genrl.policy.load import keep_training_kernels
from genrl.policy.score import score
from genrl.policy.write import write
from genrl.selftest.engine import largest
from genrl.selftest.world import GROUP, Found, World

WIDTH = 128
"""Width of the layer whose gradients are compared."""


@torch.no_grad()
def bfloat16(world: World) -> Found:
    """Log-probabilities of all layouts under autocast to bfloat16, against float32: mean absolute difference, nats."""
    found = []
    for session, requests in world.parts():
        layout = session.layout.to(world.device)
        noise = torch.rand(len(requests), GROUP, layout.length, generator=torch.Generator().manual_seed(1))
        drawn = write(session.policy, layout, requests, GROUP, noise=noise.to(world.device))
        exact = score(session.policy, layout, requests, drawn).logps
        with torch.autocast(world.device.type, torch.bfloat16):
            rough = score(session.policy, layout, requests, drawn).logps
        found.append((rough.float() - exact)[drawn.chosen[:, : exact.shape[1]]].abs())
    every = torch.cat(found)
    return Found(float(every.mean()), every.numel())


def nf4(world: World) -> Found:
    """Outputs and gradients of a layer of NF4 weights, also after evaluation, against the weights that they stand for.

    Relative to the largest value of each.

    Raises:
        UnsupportedError: if bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UnsupportedError("bitsandbytes is not installed; only model.quantize=nf4 needs it")
    import bitsandbytes as bnb

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        WIDTH, WIDTH, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    ).to(world.device)
    keep_training_kernels(layer)
    weights = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    inputs = torch.randn(16, WIDTH, device=world.device)
    wanted = torch.randn(16, WIDTH, device=world.device)
    exact = _through(lambda values: values @ weights.T, inputs, wanted)
    layer.eval()
    with torch.no_grad():
        layer(inputs)
    layer.train()
    found = _through(layer, inputs, wanted)
    return largest([(one - other) / other.abs().max() for one, other in zip(found, exact, strict=True)])


def _through(layer: object, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of a layer, and the gradient of their product with `wanted` with respect to the inputs."""
    assert callable(layer)
    asked = inputs.clone().requires_grad_()
    outputs = layer(asked)
    (gradient,) = torch.autograd.grad((outputs * wanted).sum(), asked)
    return outputs.detach(), gradient
