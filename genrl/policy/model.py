"""The policy: a causal language model whose vocabulary holds the SID tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from genrl.errors import UnsupportedError
from genrl.layouts.base import Layout, Words
from genrl.ops import exact
from genrl.policy import share
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.guide import following, growing
from genrl.registry import Entry

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

T = TypeVar("T")
HEAD_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Work:
    """What a forward pass costs: multiply-adds per token and per pair of tokens, numbers cached per token."""

    token: int
    pair: int
    cached: int


@dataclass(frozen=True)
class Head:
    """Rows first .. first + n of the output head, cut out once for all places of a completion that need some of them.

    Each cut of a trained head costs a gradient of the whole head's size; cuts of this one cost as many rows as it has.
    """

    first: int
    weight: Tensor
    """[n, H]."""
    bias: Tensor | None
    trained: tuple[int, Tensor] | None = None
    """A row, and the weights [m, H] that peft's `trainable_token_indices` has there and behind instead."""

    def logits(self, hidden: Tensor, first: int, size: int) -> Tensor:
        """Float32 (or float64) logits of the vocabulary rows first .. first + size for hidden [..., H]."""
        parts = [
            nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
            for weight, bias in self.cut(first, size)._parts()
        ]
        return exact(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def cut(self, first: int, size: int) -> Head:
        """The rows first .. first + size alone."""
        if (first, size) == (self.first, len(self.weight)):
            return self
        rows = slice(first - self.first, first - self.first + size)
        return Head(first, self.weight[rows], None if self.bias is None else self.bias[rows], self.trained)

    def _parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weights and biases of the rows in their order, those that are trained in their place."""
        if self.trained is None:
            return [(self.weight, self.bias)]
        start, trained = self.trained
        size = len(self.weight)
        low, high = (min(max(0, row - self.first), size) for row in (start, start + len(trained)))
        own = trained[self.first + low - start : self.first + high - start].to(self.weight.dtype)
        sizes = low, high - low, size - high
        biases = (None,) * 3 if self.bias is None else self.bias.split(sizes)
        parts = zip((self.weight[:low], own, self.weight[high:]), biases, strict=True)
        return [(weight, bias) for weight, bias in parts if len(weight)]


Read = Callable[[Tensor, Head], T]
"""Hidden states and rows of the head -> anything, inside a forward pass."""


def states(hidden: Tensor, head: Head) -> Tensor:
    """Reads hidden states alone."""
    return hidden


@dataclass(frozen=True)
class PolicySpec(Spec):
    """A language model but its weights."""

    config: Any
    """The model's configuration, of transformers."""
    tokenizer: Any
    """SID tokens included."""
    first_ids: tuple[int, ...]
    sizes: tuple[int, ...]
    start_id: int
    prefix_ids: tuple[int, ...]
    words: Words | None = None
    added: int = 0
    """Think tokens that the tokenizer lacked, in front of the SID tokens."""

    def __post_init__(self) -> None:
        for name in HEAD_TRANSFORMS:
            if getattr(self.config, name, None) not in (None, 1.0):
                kind = (self.config.architectures or [type(self.config).__name__])[0]
                raise UnsupportedError(
                    f"model {kind} transforms its logits ({name}); genrl reads single rows of the head and would leave "
                    f"that out. Use a model without it (Qwen2, Qwen3, Llama ...)."
                )

    @property
    @override
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.start_id if pad is None else int(pad)

    @property
    @override
    def positions(self) -> int | None:
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @override
    def check(self, layout: Entry[Layout]) -> None:
        """Nothing: a language model writes them all."""

    @override
    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder / "tokenizer")


class Policy(TrainablePolicy):
    """A causal LM with access to its decoder and to single rows of its output head.

    Args:
        model: a transformers causal LM, possibly wrapped by peft.
        spec: what it reads and writes.
    """

    def __init__(self, model: Any, spec: PolicySpec) -> None:  # noqa: ANN401 (transformers and peft are untyped)
        super().__init__(model, spec)
        self.tokenizer, self.positions = spec.tokenizer, spec.positions
        first = min(spec.first_ids)
        stop = max(start + codes for start, codes in zip(spec.first_ids, spec.sizes, strict=True))
        self.sid_rows = first, stop - first
        """Rows of the head that are SID tokens: the first, and how many."""
        self.refused_ways: dict[torch.device, dict[str, str]] = {}
        """Ways, `share` among them, that give wrong results with this model, with the reason, for the devices tried."""
        self.noticed: set[str] = set()
        """Refused ways that the user has been told of."""

    @property
    def base(self) -> Any:  # noqa: ANN401 (transformers is untyped)
        """The causal LM itself, adapters injected but peft's wrapper taken off."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> Any:  # noqa: ANN401 (transformers is untyped)
        """The model without its output head."""
        return getattr(self.base, self.base.base_model_prefix)

    @cached_property
    def window(self) -> int | None:
        """Tokens that the narrowest layer attends to; None: all layers see everything."""
        config = self.base.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kinds = ["sliding_attention"] if getattr(config, "use_sliding_window", True) else []
        sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        found = [getattr(config, sizes[kind], None) for kind in kinds if kind in sizes]
        return min((size for size in found if size is not None), default=None)

    @cached_property
    def work(self) -> Work:
        """Cost of a forward pass, from the shapes of the model's linear layers; an estimate for mixtures of experts."""
        config = self.base.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        matrices = (module for module in self.decoder.modules() if isinstance(module, nn.Linear))
        return Work(
            token=sum(matrix.in_features * matrix.out_features for matrix in matrices),
            pair=2 * layers * heads * width,
            cached=2 * layers * shared * width,
        )

    @property
    def checkpointing(self) -> bool:
        """Whether passes drop what the backward pass can compute again, caches among it: see `update_mode`."""
        return any(layer.training for layer in self._checkpointed())

    @override
    def checkpoint_activations(self) -> None:
        name = "activation_checkpointing_enable"  # the other name is the older one
        enable = getattr(self.base, name, None) or self.base.gradient_checkpointing_enable
        kind = type(self.base).__name__
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise UnsupportedError(
                f"trainer.checkpointing: {kind} has no activation checkpointing ({error})."
            ) from error
        for layer in self._checkpointed():
            rates = {name: rate for name, rate in vars(layer).items() if "dropout" in name and isinstance(rate, float)}
            if any(rates.values()):
                raise UnsupportedError(
                    f"trainer.checkpointing: layers of {kind} drop out by themselves ({rates}), which checkpointing "
                    f"would switch on in updates. Set that dropout to 0 in the model's config.json."
                )

    def _checkpointed(self) -> Iterator[nn.Module]:
        """Layers that activation checkpointing was switched on for."""
        return (block for block in self.blocks() if getattr(block, "gradient_checkpointing", False))

    @override
    def blocks(self) -> Iterator[nn.Module]:
        from transformers.modeling_layers import GradientCheckpointingLayer  # takes seconds to load

        return (module for module in self.decoder.modules() if isinstance(module, GradientCheckpointingLayer))

    @override
    def update_mode(self) -> None:
        """Be the policy that was sampled from, ready for a backward pass: no dropout, but activation checkpointing.

        transformers checkpoints only layers that are in training mode; setting that on the layers alone leaves what is
        inside them (dropout) in eval mode.
        """
        self.eval()
        for layer in self._checkpointed():
            layer.training = True

    @override
    def compile_decoder(self, **options: Any) -> None:
        self._forward = torch.compile(self._forward, dynamic=True, **options)  # type: ignore[method-assign]

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        read: Read[T],
        rows: str = "legal",
        cache: Cache | None = None,
        **options: Any,  # noqa: ANN401 (the attention function knows them)
    ) -> T:
        """What `read` makes of last hidden states [P, Q, H] and rows of the output head: the one door to the weights.

        Args:
            tokens: [P, Q]; with Q = 0 only the head is read.
            mask: [P, 1, Q, cached + Q] who sees whom; or [P, cached + Q] what is no padding, for the model's own mask;
                or None for causal attention to everything, which has the fastest kernels.
            positions: [P, Q].
            read: hidden states and head -> anything, for example log-probabilities at some places. It runs inside the
                forward pass, where the weights are whole also if a strategy shards them.
            rows: of the head: those of the SID tokens for `legal`, or all for `vocab`.
            cache: of the tokens before; extended.
            options: passed on to the attention of every layer; only with a cache.
        """
        return read(self._hidden(tokens, mask, positions, cache, options), self._head(rows))

    if TYPE_CHECKING:
        __call__ = forward

    def _hidden(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache | None, options: dict[str, Any]
    ) -> Tensor:
        if tokens.shape[1] == 0:
            table = self.base.get_input_embeddings().weight
            return table.new_zeros(*tokens.shape, self.base.config.get_text_config().hidden_size)
        if mask is not None and mask.dim() == 4:  # one addition for all layers instead of a conversion in each
            dtype = self.base.get_input_embeddings().weight.dtype
            mask = torch.zeros((), dtype=dtype, device=mask.device).where(mask, float("-inf"))
        if cache is None:
            return self._forward(tokens, mask, positions)
        options[self._cache_argument] = cache
        output = self.decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **options)
        return output.last_hidden_state

    @cached_property
    def _cache_argument(self) -> str:
        """What this version of transformers calls a cache."""
        return "cache" if "cache" in inspect.signature(self.decoder.forward).parameters else "past_key_values"

    def _forward(self, tokens: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self.decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def _head(self, rows: str) -> Head:
        head = self.base.get_output_embeddings()
        deltas = getattr(getattr(head, "token_adapter", None), "trainable_tokens_delta", None)
        trained = None
        if deltas is not None:
            name = head.token_adapter.active_adapters[0]
            trained = head.token_adapter.token_indices[name][0], deltas[name]
        weight = head.weight if deltas is None else head.token_adapter.base_layer.weight
        whole = Head(0, weight, getattr(head, "bias", None), trained)
        return whole if rows == "vocab" else whole.cut(*self.sid_rows)

    grow = growing(share.grow)
    follow = following(share.follow)

    @override
    def to_bfloat16(self) -> None:
        """Hold the weights in bfloat16, but for adapters: steps too small for its 8 bits would not move them."""
        adapted = self.base is not self.model
        for value in self.model.parameters():
            if value.is_floating_point() and not (adapted and value.requires_grad):
                value.data = value.data.bfloat16()

    @property
    @override
    def exact(self) -> bool:
        dtype = self.base.get_input_embeddings().weight.dtype
        return dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(self.device.type)
