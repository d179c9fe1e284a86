"""What training a language model takes of a device's memory, from the shapes of its weights: nothing is loaded.

Weights, gradients and means of the optimiser are counted. What the backward pass keeps is not guessed from a formula
per architecture: PyTorch runs one pass over the model on the meta device, where tensors have shapes and no numbers, and
says what it would keep; that grows with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genrl.policy.model import Policy

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantisation: 4 bits, an 8-bit scale for each 64 weights, and a float32 for each
256 of these (QLoRA, arXiv:2305.14314, section 3)."""
MEANS = {
    "adamw": 8.0,
    "paged_adamw_32bit": 8.0,
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
    "muon": 4.0,
}
"""Bytes of an optimiser's means per float32 weight: two in 32 bits; two in 8 bits with a float32 for each 256
(arXiv:2110.02861); Muon has one, for matrices inside the model, and AdamW's for all else."""
SMALL = 4096
"""Values of a tensor below which `paged_adamw_8bit` keeps 32 bits."""
FLOATS = 4
"""Tensors as large as float32 logits that a cross-entropy holds at once: logits, log-probabilities, two gradients."""
CHOICES = 6
"""The same of the distribution over a legal set (`genrl.policy.distribution`), which masks and has an entropy."""
SHAPE = (1, 48), (1, 16)
"""Rows and tokens of the passes from which it is told what the backward pass keeps per token."""


@dataclass(frozen=True)
class Need:
    """Bytes on one device at the peak of one part of a run, by what they are for."""

    part: str
    weights: float = 0.0
    """Frozen ones, or all where all are trained."""
    adapters: float = 0.0
    """Adapters and rows of new tokens that are trained beside frozen weights."""
    gradients: float = 0.0
    optimiser: float = 0.0
    reference: float = 0.0
    """The copy of what is trained that a KL penalty holds the policy to."""
    cache: float = 0.0
    """Keys and values of what was written."""
    activations: float = 0.0
    """What the backward pass needs of the forward pass, and what a layer computes with."""
    logits: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """What is not nothing, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "part"}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Model:
    """What memory depends on of a policy."""

    held: Need
    """Weights and adapters, and gradients in full."""
    means: Callable[[str], float]
    """Bytes of an optimiser's means."""
    kept: float
    """Bytes per token that the backward pass keeps."""
    layers: int
    width: int
    """Of hidden states."""
    inner: int
    """Of feed-forward layers."""
    cached: int
    """Numbers per token in a cache."""
    size: int
    """Bytes of a number of hidden states."""
    vocabulary: int
    table: float
    """Bytes of the embeddings."""
    whole: bool
    """Whether all weights are trained."""
    unpacked: float
    """Bytes of the largest 4-bit weight when it is written out for a product; 0: none has 4 bits."""
    checkpointing: bool
    largest: float
    """Bytes of the largest trained tensor."""


def model_of(policy: Policy, *, quantised: bool, mixed: bool, checkpointing: bool, dropout: bool) -> Model:
    """Measure an outline (`load_outline`).

    Args:
        policy: on the meta device.
        quantised: whether matrices of its layers are NF4.
        mixed: whether passes run under bfloat16 autocast.
        checkpointing: whether layers keep their input alone and compute the rest again (arXiv:1604.06174).
        dropout: whether there is any in training.
    """
    config = policy.base.config.get_text_config()
    packed = _matrices(policy) if quantised else set()
    weights = adapters = unpacked = 0.0
    whole = policy.base is policy.model
    trained = policy.trainable()
    for value in policy.model.parameters():
        size = NF4 if id(value) in packed else value.element_size()
        if value.requires_grad and not whole:
            adapters += value.numel() * size
        else:
            weights += value.numel() * size
        if id(value) in packed:
            unpacked = max(unpacked, value.numel() * value.element_size())
    rooms = {name: float(value.numel() * value.element_size()) for name, value in trained.items()}
    matrices = policy.matrices
    table = policy.base.get_input_embeddings().weight

    def means(kind: str) -> float:
        return sum(
            value.numel() * (8.0 if _exempt(kind, name, value, matrices) else MEANS[kind]) * value.element_size() / 4
            for name, value in trained.items()
        )

    long, short = (_kept(policy, *shape, mixed=mixed, dropout=dropout) for shape in SHAPE)
    return Model(
        held=Need("", weights=weights, adapters=adapters, gradients=sum(rooms.values())),
        means=means,
        kept=(long - short) / (SHAPE[0][1] - SHAPE[1][1]),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=getattr(config, "intermediate_size", 4 * config.hidden_size),
        cached=policy.work.cached,
        size=2 if mixed else table.element_size(),
        vocabulary=table.shape[0],
        table=float(table.numel() * table.element_size()),
        whole=whole,
        unpacked=unpacked,
        checkpointing=checkpointing,
        largest=max(rooms.values(), default=0.0),
    )


def training(
    model: Model, part: str, optimiser: str, tokens: int, mask: float, logits: float, *, passes: int, copies: float
) -> Need:
    """The peak of an optimiser step.

    What a pass keeps is there when its backward pass begins; while layers give it back they make gradients. With one
    pass per step these take its place, with several all gradients of the passes before stand beside it. A backward pass
    ends with gradients of whole tables, and a step may need copies of the gradients.

    Args:
        model: see `model_of`.
        part: what to call it.
        optimiser: its kind.
        tokens: of a pass, padding included.
        mask: bytes of the attention mask.
        logits: bytes.
        passes: forward and backward passes per step.
        copies: of all gradients that a strategy or an optimiser makes.
    """
    held = replace(model.held, part=part, optimiser=model.means(optimiser))
    gradients, head = held.gradients, model.table if model.whole else 0.0
    before = gradients if passes > 1 else 0.0
    forward = _activations(model, tokens) + mask + model.unpacked
    during, behind = before + head + forward + logits, gradients * (1 + copies) + 2 * model.table
    if during >= behind:
        return replace(held, gradients=before + head, activations=forward, logits=logits)
    return replace(held, gradients=behind)


def inference(model: Model, part: str, optimiser: str, tokens: int, cached: int, mask: float, logits: float) -> Need:
    """The peak of a rollout or of rankings, between optimiser steps: gradients and means are still there.

    Args:
        model: see `model_of`.
        part: what to call it.
        optimiser: kind of the one that trains; empty: it is gone, and the latest gradients are left.
        tokens: of the pass over the prompts, which is the widest.
        cached: tokens in the cache at the end.
        mask: bytes of the attention mask of that pass.
        logits: bytes of one step.
    """
    held = replace(model.held, part=part, optimiser=model.means(optimiser) if optimiser else 0.0)
    working = tokens * (3 * model.inner + 4 * model.width) * model.size + mask + model.unpacked
    return replace(held, cache=float(cached * model.cached * model.size), activations=working, logits=logits)


def _activations(model: Model, tokens: int) -> float:
    """Bytes that a pass keeps, and those that the backward pass of one layer computes with."""
    working = tokens * (3 * model.inner + 2 * model.width) * model.size
    if model.checkpointing:
        return tokens * (model.layers * model.width * model.size + model.kept / model.layers) + working
    return tokens * model.kept + working


def _exempt(kind: str, name: str, value: Tensor, matrices: set[str]) -> bool:
    """Whether a tensor has AdamW's means whatever the kind."""
    return (kind == "muon" and name not in matrices) or (kind == "paged_adamw_8bit" and value.numel() < SMALL)


def _matrices(policy: Policy) -> set[int]:
    """Ids of the weights that become 4-bit ones: of linear layers, but the head and adapters."""
    return {
        id(module.weight)
        for path, module in policy.decoder.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in path
    }


def _kept(policy: Policy, rows: int, length: int, *, mixed: bool, dropout: bool) -> float:
    """Bytes that autograd keeps of a pass over tokens [rows, length], weights not counted; on the meta device."""
    own = {value.untyped_storage()._cdata for value in policy.parameters()}
    kept: dict[int, Any] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its place
        return value

    tokens = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    mask = torch.zeros(rows, 1, length, length, dtype=policy.base.get_input_embeddings().weight.dtype, device="meta")
    own.add(mask.untyped_storage()._cdata)
    policy.train(dropout)
    lower = _Lower() if mixed else nullcontext()
    with _fused(policy.base), lower, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        end = policy.decoder(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
    assert end.last_hidden_state.requires_grad
    return float(sum(storage.nbytes() for storage in kept.values()))


@contextmanager
def _fused(base: Any) -> Iterator[None]:  # noqa: ANN401 (transformers is untyped)
    """Within the block, attention is the fused kernel, which on the meta device PyTorch does not choose by itself."""
    from transformers import AttentionInterface

    before = base.config._attn_implementation
    AttentionInterface.register("fused", _attention)
    base.set_attn_implementation("fused")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _attention(
    module: Any,  # noqa: ANN401
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """What transformers' sdpa attention computes, by a fused kernel: queries [P, heads, L, d]."""
    share = getattr(module, "num_key_value_groups", 1)
    key, value = (part.repeat_interleave(share, dim=1) if share > 1 else part for part in (key, value))
    query, key, value = (part.to(value.dtype) for part in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, _ = kernel(query, key, value, 0.0, False, attn_mask=attention_mask)
    return found.transpose(1, 2).contiguous(), None


class _Lower(TorchFunctionMode):
    """Autocast to bfloat16, which does not know the meta device: products of matrices are of that type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is nn.functional.linear:
            args = tuple(part.bfloat16() if isinstance(part, Tensor) else part for part in args)
        return func(*args, **(kwargs or {}))
