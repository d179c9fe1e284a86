"""The policy: a causal language model whose vocabulary holds the SID tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from genrl.errors import CheckpointError, UnsupportedError

HEAD_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class Policy(nn.Module):
    """A causal LM with access to its decoder and to single rows of its output head.

    Args:
        model: a transformers causal LM, possibly wrapped by peft.
        tokenizer: its tokenizer, SID tokens included.
        first_ids: token id of code 0 of each SID level.
        start_id: token that opens every sequence.
        prefix_ids: tokens of the prompt's prefix.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers and peft are untyped)
        tokenizer: Any,  # noqa: ANN401
        first_ids: tuple[int, ...],
        start_id: int,
        prefix_ids: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.first_ids = first_ids
        self.start_id = start_id
        self.prefix_ids = prefix_ids
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        for name in HEAD_TRANSFORMS:
            if getattr(base.config, name, None) not in (None, 1.0):
                raise UnsupportedError(
                    f"model {type(base).__name__} transforms its logits ({name}); genrl reads single rows of the head "
                    f"and would leave that out. Use a model without it (Qwen2, Qwen3, Llama ...)."
                )
        self._reference: dict[str, Tensor] = {}

    @property
    def base(self) -> Any:  # noqa: ANN401 (transformers is untyped)
        """The causal LM itself, adapters injected but peft's wrapper taken off."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def hidden(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [P, Q, H] of `tokens` [P, Q] under a mask [P, 1, Q, cached + Q]; extends `cache`."""
        decoder = getattr(self.base, self.base.base_model_prefix)
        output = decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def logits(self, hidden: Tensor, first: int = 0, size: int | None = None) -> Tensor:
        """Float32 logits of the vocabulary rows first .. first + size (all rows without `size`) for hidden [..., H]."""
        head = self.base.get_output_embeddings()
        rows = slice(first, None if size is None else first + size)
        weight = _trained_rows(head, rows)
        bias = None if getattr(head, "bias", None) is None else head.bias[rows].to(hidden.dtype)
        return nn.functional.linear(hidden, weight.to(hidden.dtype), bias).float()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights on the CPU: all that a stage has to save."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.trainable().items()}

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Put saved trained weights in place.

        Raises:
            CheckpointError: if names or shapes are those of another model.
        """
        own = self.trainable()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if missing or extra or shapes:
            what = [
                f"{len(names)} {word} ({names[0]} ...)"
                for names, word in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
                if names
            ]
            raise CheckpointError(
                f"{origin}: these weights belong to another model: {', '.join(what)}. "
                f"Use the configuration the checkpoint was trained with (config.yaml in its run folder)."
            )
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def keep_reference(self) -> None:
        """Remember the present trained weights as the reference policy.

        Only what training changes is copied: the adapters under LoRA, all weights under full fine-tuning.
        """
        self._reference = {name: value.detach().clone() for name, value in self.trainable().items()}

    def reference_state(self) -> dict[str, Tensor]:
        """The reference weights, empty if there are none."""
        return self._reference

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Be the reference policy inside the block; for forward passes without gradient."""
        if not self._reference:
            raise UnsupportedError("no reference policy was kept; call keep_reference() before training starts.")
        own = self.trainable()
        with torch.no_grad():
            swapped = {name: own[name].data for name in own}
            for name, value in own.items():
                self._reference[name] = self._reference[name].to(value.device)
                value.data = self._reference[name]
            try:
                yield
            finally:
                for name, value in own.items():
                    value.data = swapped[name]


def _trained_rows(head: Any, rows: slice) -> Tensor:  # noqa: ANN401
    """Rows of an output head's weight, with those that peft's `trainable_token_indices` trains put in their place."""
    deltas = getattr(getattr(head, "token_adapter", None), "trainable_tokens_delta", None)
    if deltas is None:
        return head.weight[rows]
    adapter = head.token_adapter
    name = adapter.active_adapters[0]
    weight = adapter.base_layer.weight[rows]
    start = rows.start or 0
    trained = torch.as_tensor(adapter.token_indices[name], device=weight.device)
    inside = (trained >= start) & (trained < start + weight.shape[0])
    return weight.index_copy(0, trained[inside] - start, deltas[name][inside].to(weight.dtype))
