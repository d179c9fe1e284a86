"""TIGER: an encoder-decoder that reads the Semantic IDs of a history and writes that of the next item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from itertools import accumulate
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from genrl.batches import Requests
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.options import option
from genrl.policy.distribution import Sampling
from genrl.policy.encoder import length_groups
from genrl.policy.model import Head
from genrl.policy.protocol import Say
from genrl.policy.score import item_loss
from genrl.policy.share import Hidden
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders.base import BASELINES, Problem
from genrl.recommenders.searching import SearchingBaseline, SearchingConfig, bare
from genrl.sid.trie import Trie

T = TypeVar("T")
PAD, EDGE, SPECIAL = 0, 1, 2
"""Tokens: padding; the edge, which ends every history and starts every SID; how many there are before the codes."""


@dataclass(frozen=True)
class TIGERConfig(SearchingConfig):
    """Options; the defaults are for minutes on one CPU core.

    The paper's model: layers 4, hidden 128, heads 6, head_size 64, feed_forward 1024, dropout 0.1, and some 400 passes.
    """

    max_epochs: int = 3
    """Passes over the data at most."""
    patience: int = 0
    """Validations without a better NDCG before training stops; 0 never stops early."""
    batch: int = 256
    """Targets per optimiser step."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    final_learning_rate: float = 0.05
    """Share of the peak that a cosine ends at."""
    warmup_steps: int = 200
    """Linear warm-up."""
    max_length: int = 20
    """Latest items of a history that the encoder reads."""
    layers: int = option(2, ge=1)
    """Layers of the encoder, and of the decoder."""
    hidden: int = option(64, ge=1)
    """Width of the model."""
    heads: int = option(4, ge=1)
    """Attention heads."""
    head_size: int = option(16, ge=1)
    """Width of a head."""
    feed_forward: int = option(256, ge=1)
    """Width of the feed-forward layers."""
    dropout: float = 0.0
    """Dropout everywhere in T5; a few passes need none."""
    normalize: Literal["legal", "vocab"] = "legal"
    """What the probabilities of a token sum to one over: the codes that continue to an item, so that the items have a
    distribution of their own; or the whole vocabulary, as in the paper."""


@dataclass(frozen=True)
class _History:
    """What the encoder says of P histories."""

    states: Tensor
    """[P, L, hidden]."""
    bias: Tensor
    """[P, 1, 1, L] float: -inf on padding, else 0."""


class _Decoding:
    """SIDs that grow behind histories; see `genrl.policy.protocol.Growth`."""

    def __init__(self, model: TIGER, history: _History) -> None:
        self.model = model
        self.history = history
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def begin(self, say: Say[T]) -> T:
        """Behind the edge."""
        return self._decode(torch.full((len(self.history.states), 1), EDGE, device=self.history.states.device), say)

    def extend(self, tokens: Tensor, say: Say[T], parents: Tensor | None = None, live: Tensor | None = None) -> T:
        """All slots are computed, live or not."""
        if parents is not None or tokens.shape[1] != self.width:
            rows = torch.arange(len(tokens), device=tokens.device)[:, None] * self.width
            rows = (rows if parents is None else rows + parents).expand_as(tokens)
            self.cache.self_attention_cache.batch_select_indices(rows.flatten())
        return self._decode(tokens, say)

    def _decode(self, tokens: Tensor, say: Say[T]) -> T:
        self.width = tokens.shape[1]
        hidden = self.model.decode(tokens[:, :, None], self.history, self.cache)
        return say(Hidden(self.model.head(), hidden.flatten(0, 2)))


@BASELINES.register(
    "tiger", config=TIGERConfig, title="Transformer Index for GEnerative Recommenders", paper="arXiv:2305.05065"
)
class TIGER(SearchingBaseline):
    """T5 from scratch over SID tokens (Rajput et al., NeurIPS 2023).

    Differences from the paper: the SIDs are those of the problem's table; beam search takes only codes that lead to an
    item, so that no place of a ranking is lost to a SID that does not exist; there is no token of the user (the paper
    hashes users to 2,000 tokens), which says nothing of users that training did not see; AdamW in place of Adafactor.

    Args:
        config: sizes of the model and how it is trained.
        problem: catalogue and SID table.
    """

    per: ClassVar[Literal["target", "user"]] = "target"

    def __init__(self, config: TIGERConfig, *, problem: Problem) -> None:
        from transformers import T5Config, T5Model  # takes seconds to load
        from transformers.models.t5.modeling_t5 import T5LayerSelfAttention

        super().__init__()
        self.config: TIGERConfig = config
        named = signature(T5LayerSelfAttention.forward).parameters
        self.sampling = Sampling(normalize="vocab" if config.normalize == "vocab" else "catalogue")
        self._cache = "cache" if "cache" in named else "past_key_values"  # by the version of transformers
        table = problem.table
        sizes = table.codebook_sizes
        trie = Trie.build(table.codes, sizes, problem.dataset.catalog.train_counts)
        self.first_ids, self.sizes = tuple(accumulate(sizes[:-1], initial=SPECIAL)), sizes
        self.layout = SidLayout(SidLayoutConfig(), catalogue=Items(trie, self.first_ids, table.codes))
        self.t5 = T5Model(
            T5Config(
                vocab_size=SPECIAL + sum(sizes),
                d_model=config.hidden,
                d_kv=config.head_size,
                d_ff=config.feed_forward,
                num_layers=config.layers,
                num_heads=config.heads,
                dropout_rate=config.dropout,
                pad_token_id=PAD,
                eos_token_id=EDGE,
                decoder_start_token_id=EDGE,
                attn_implementation="eager",
            )
        )

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Sum of the cross-entropies of all codes of all targets, the last items of their rows."""
        if not len(batch):  # a process without rows still has a part in the step
            return torch.stack([0.0 * value.sum() for value in self.parameters()]).sum()
        layout, losses = self.on_device(), []
        for rows, width in length_groups(batch.items):
            items = batch.items[rows, -width:]
            hidden = self._behind(bare(items[:, :-1]), layout.compose(items[:, -1:]))
            losses.append(item_loss(Hidden(self.head(), hidden), layout, items[:, -1:], self.config.normalize))
        return torch.stack(losses).sum()

    @property
    def writer(self) -> TIGER:
        return self

    def asked(self, requests: Requests) -> list[tuple[Tensor, Requests]]:
        parts = []
        for rows, length in length_groups(requests.history):
            own = requests.rows(rows)
            parts.append((rows, bare(own.history[:, -length:], own.deny, own.pool)))
        return parts

    def grow(
        self, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False
    ) -> _Decoding:
        """See `genrl.policy.protocol.Generative`; prompts are not read, their histories are."""
        return _Decoding(self, self._encode(requests.history, self.on_device()))

    def follow(
        self,
        requests: Requests,
        written: Tensor,
        chosen: Tensor,
        say: Callable[[Hidden, Hidden], T],
        rows: str = "legal",
    ) -> T:
        """See `genrl.policy.protocol.Generative`."""
        said = Hidden(self.head(), self._behind(requests, written))
        return say(said[:, 0], said[:, 1:])

    def _behind(self, requests: Requests, written: Tensor) -> Tensor:
        """Hidden states [B, T, hidden] before the tokens of SIDs [B, T]."""
        tokens = torch.cat([torch.full_like(written[:, :1], EDGE), written[:, :-1]], dim=1)
        history = self._encode(requests.history, self.on_device())
        return self.decode(tokens.unflatten(0, (len(requests), -1)), history).flatten(0, 1)

    def head(self) -> Head:
        """T5's output head: the embedding itself, made smaller."""
        return Head(0, self.t5.shared.weight * self.config.hidden**-0.5, None)

    def _encode(self, items: Tensor, layout: SidLayout) -> _History:
        """Encode histories [P, H]."""
        items = items[:, -self.config.max_length :]
        real = (items >= 0)[:, :, None].expand(-1, -1, layout.length).flatten(1)
        tokens = layout.catalogue.render(items.clamp(min=0)).flatten(1).masked_fill(~real, PAD)
        tokens = torch.nn.functional.pad(tokens, (0, 1), value=EDGE)
        real = torch.nn.functional.pad(real, (0, 1), value=True)
        states = self.t5.encoder(input_ids=tokens, attention_mask=real).last_hidden_state
        bias = torch.zeros_like(real, dtype=states.dtype).masked_fill(~real, float("-inf"))
        return _History(states, bias[:, None, None])

    def decode(self, tokens: Tensor, history: _History, cache: EncoderDecoderCache | None = None) -> Tensor:
        """Hidden states of the tokens of W branches of each history; this is T5's decoder, block by block.

        Branches are rows where they look at themselves and queries of one row where they look at their history, so
        that keys and values of a history exist once for all its branches.

        Args:
            tokens: [P, W, T].
            history: P histories.
            cache: of the tokens before; extended.

        Returns:
            [P, W, T, hidden].
        """
        decoder = self.t5.decoder
        prompts, branches, length = tokens.shape
        rows, queries = (prompts * branches, length, -1), (prompts, branches * length, -1)
        bias = self._causal_bias(0 if cache is None else cache.get_seq_length(), length)
        hidden = decoder.dropout(self.t5.shared(tokens))
        for block in decoder.block:
            own, cross, feed_forward = block.layer
            hidden = own(hidden.view(rows), position_bias=bias, **{self._cache: cache})[0]
            hidden = cross(hidden.view(queries), history.states, position_bias=history.bias, **{self._cache: cache})[0]
            hidden = feed_forward(hidden)
        return decoder.dropout(decoder.final_layer_norm(hidden)).view(*tokens.shape, -1)

    def _causal_bias(self, past: int, length: int) -> Tensor:
        """T5's relative position bias of `length` tokens behind `past` ones, -inf on later ones: [1, heads, T, S]."""
        size = past + length
        bias = self.t5.decoder.block[0].layer[0].SelfAttention.compute_bias(size, size)
        later = torch.ones(size, size, dtype=torch.bool, device=bias.device).triu(1)
        return bias.masked_fill(later, float("-inf"))[:, :, past:]
