"""TIGER: an encoder-decoder that reads the Semantic IDs of a history and writes that of the next item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from genrl.batches import Ranking, Requests, State
from genrl.layouts.base import BROKEN
from genrl.layouts.items import Items
from genrl.layouts.sid import SidLayout, SidLayoutConfig
from genrl.options import option
from genrl.policy.distribution import distribution
from genrl.policy.model import Head
from genrl.policy.score import item_loss
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders.attention import length_groups
from genrl.recommenders.base import BASELINES, Problem, TrainedBaseline, TrainingConfig
from genrl.sid.trie import Trie

PAD, EDGE, SPECIAL = 0, 1, 2
"""Tokens: padding; the edge, which ends every history and starts every SID; how many there are before the codes."""


@dataclass(frozen=True)
class TIGERConfig(TrainingConfig):
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
    beam: int = 20
    """Least width of the beam; rankings that are wider have beams as wide as they are."""


@dataclass(frozen=True)
class _History:
    """What the encoder says of P histories."""

    states: Tensor
    """[P, L, hidden]."""
    bias: Tensor
    """[P, 1, 1, L] float: -inf on padding, else 0."""


@BASELINES.register(
    "tiger", config=TIGERConfig, title="Transformer Index for GEnerative Recommenders", paper="arXiv:2305.05065"
)
class TIGER(TrainedBaseline):
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
        self._cache = "cache" if "cache" in named else "past_key_values"  # by the version of transformers
        table = problem.table
        sizes = table.codebook_sizes
        trie = Trie.build(table.codes, sizes, problem.dataset.catalog.train_counts)
        first_ids = tuple(accumulate(sizes[:-1], initial=SPECIAL))
        self.layout = SidLayout(SidLayoutConfig(), catalogue=Items(trie, first_ids, table.codes))
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
        layout, groups = self._layout(), length_groups(batch.items)
        return torch.stack([self._cross_entropy(batch.items[rows, -width:], layout) for rows, width in groups]).sum()

    @torch.no_grad()
    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        """The best items that a beam search finds; scores are log-probabilities of SIDs, in nats."""
        items = histories.new_full((len(histories), width), -1)
        scores = torch.full(items.shape, float("-inf"), device=items.device)
        for rows, length in length_groups(histories):
            denied = None if deny is None else deny[rows]
            items[rows], scores[rows] = self._search(histories[rows][:, -length:], width, denied)
        return Ranking(items, scores)

    def _layout(self) -> SidLayout:
        """The layout on the device of the weights."""
        self.layout = self.layout.to(str(self.t5.device))
        return self.layout

    def _head(self) -> Head:
        """T5's output head: the embedding itself, made smaller."""
        return Head(0, self.t5.shared.weight * self.config.hidden**-0.5, None)

    def _cross_entropy(self, items: Tensor, layout: SidLayout) -> Tensor:
        """Loss of rows [n, L] whose last item is the target, summed."""
        tokens = layout.compose(items[:, -1:])
        start = torch.full_like(tokens[:, :1], EDGE)
        history = self._encode(items[:, :-1], layout)
        hidden = self._decode(torch.cat([start, tokens[:, :-1]], dim=1)[:, None], history)[:, 0]
        return item_loss(self._head(), hidden, layout, items[:, -1:], self.config.normalize)

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

    def _decode(self, tokens: Tensor, history: _History, cache: EncoderDecoderCache | None = None) -> Tensor:
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

    def _search(self, histories: Tensor, width: int, deny: Tensor | None) -> tuple[Tensor, Tensor]:
        """Items and scores [P, width] of histories [P, H]."""
        layout = self._layout()
        requests = Requests(histories[:, :0], histories[:, :0] >= 0, histories, deny=deny)
        state, scores = self._beam(self._encode(histories, layout), layout, requests, max(width, self.config.beam))
        return layout.rank(state, scores, width, requests)

    def _beam(self, history: _History, layout: SidLayout, requests: Requests, width: int) -> tuple[State, Tensor]:
        """States [P * W] and scores [P, W] of the best SIDs found, broken and -inf where there are fewer."""
        prompts, device = len(history.states), history.states.device
        rows = torch.arange(prompts, device=device)[:, None]
        normalize = "vocab" if self.config.normalize == "vocab" else "catalogue"  # a filter changes no item's score
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        head = self._head()
        state: State = layout.start(prompts)
        tokens = torch.full((prompts, 1), EDGE, device=device)
        scores = torch.zeros(prompts, 1, device=device)
        for position in range(layout.length):
            hidden = self._decode(tokens[:, :, None], history, cache)[:, :, 0]
            legal = layout.legal(position, state, requests)
            log_probs, _, _ = distribution(head, hidden.flatten(0, 1), legal, 1.0, normalize)
            branches, codes = scores.shape[1], log_probs.shape[1]
            reached = (scores.view(-1, 1) + log_probs).view(prompts, -1)
            scores, best = reached.topk(min(width, branches * codes), dim=1)
            parents, tokens = (rows * branches + best // codes).flatten(), best % codes + legal.first
            state = layout.advance(state.rows(parents), tokens.flatten(), position)
            state = replace(state, site=state.site.masked_fill(scores.flatten() == float("-inf"), BROKEN))
            cache.self_attention_cache.batch_select_indices(parents)
        return state, scores
