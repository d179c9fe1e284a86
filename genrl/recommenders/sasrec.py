"""SASRec (Kang and McAuley, ICDM 2018): self-attention over a user's items predicts the next one."""

from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from genrl.batches import Ranking
from genrl.errors import ConfigError
from genrl.options import option
from genrl.policy.catalogue_loss import CHUNK, catalogue_cross_entropy
from genrl.policy.encoder import ItemEncoder, length_groups
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders.base import BASELINES, Problem, TrainedBaseline, TrainingConfig
from genrl.recommenders.scoring import best_items


@dataclass(frozen=True)
class EncoderConfig(TrainingConfig):
    """Size of an item encoder."""

    hidden: int = option(64, ge=1)
    """Width of embeddings and states."""
    blocks: int = option(2, ge=0)
    """Self-attention blocks."""
    heads: int = option(2, ge=1)
    """Attention heads; must divide `hidden`."""
    dropout: float = option(0.4, ge=0, lt=1)
    """Share of activations dropped in training."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ConfigError(
                f"heads={self.heads} does not divide hidden={self.hidden}. Choose a divisor, or another width."
            )


@dataclass(frozen=True)
class SASRecConfig(EncoderConfig):
    """Options of SASRec. The defaults suit the cross-entropy; the binary loss needs several times the passes."""

    batch: int = 256
    """Users per optimiser step."""
    learning_rate: float = 3e-3
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    """Cross-entropy over the whole catalogue (the strong variant), or the paper's binary loss with drawn negatives."""
    negatives: int = option(1, ge=1)
    """Negatives per target of the binary loss; the paper draws 1."""


class EncoderBaseline(TrainedBaseline):
    """Scores the catalogue by the product of a state of the history with the item embeddings.

    A user without a history gets the most popular items.
    """

    exact: ClassVar[bool] = True
    config: EncoderConfig
    popularity: Tensor

    def __init__(self, config: EncoderConfig, *, problem: Problem) -> None:
        super().__init__()
        self.config = config
        catalog = problem.dataset.catalog
        self.encoder = ItemEncoder(
            len(catalog), config.hidden, config.blocks, config.heads, config.dropout, config.max_length
        )
        self.register_buffer("popularity", catalog.train_counts.float(), persistent=False)

    def last_states(self, items: Tensor) -> Tensor:
        """State that scores what follows each history: items [B, L] of one width -> [B, hidden]."""
        return self.encoder(items)[0][:, -1]

    @torch.no_grad()
    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        denied = repeat(None) if deny is None else deny.split(CHUNK)
        parts = [
            best_items(self._scores(part), width, rows)
            for part, rows in zip(histories.split(CHUNK), denied, strict=False)
        ]
        return Ranking(torch.cat([part.items for part in parts]), torch.cat([part.scores for part in parts]))

    @property
    def temperature(self) -> float:
        """Of the softmax of scores that training fits."""
        return 1.0

    def likelihoods(self, histories: Tensor) -> Tensor:
        """Softmax of the scores; behind no history at all, shares of the training interactions (each count plus 1)."""
        scores = torch.cat([self._scores(part) for part in histories.split(CHUNK)]) / self.temperature
        nothing = (histories < 0).all(dim=1, keepdim=True)
        return torch.where(nothing, self.popularity.log1p(), scores).log_softmax(1)

    def _scores(self, histories: Tensor) -> Tensor:
        histories = pad(histories, (1, 0), value=-1)[:, -self.config.max_length :]
        states = self.popularity.new_zeros(len(histories), self.config.hidden)
        for rows, length in length_groups(histories):
            states[rows] = self.last_states(histories[rows, -length:]).to(states.dtype)
        nothing = (histories < 0).all(dim=1, keepdim=True)
        with torch.autocast(states.device.type, enabled=False):  # bfloat16 would tie a good part of a large catalogue
            return torch.where(nothing, self.popularity, states @ self.encoder.table.T)


@BASELINES.register("sasrec", config=SASRecConfig, title="SASRec", paper="arXiv:1808.09781")
class SASRec(EncoderBaseline):
    """Self-attentive sequential recommendation.

    Every place of a user's sequence predicts the next item from the items up to it; item embeddings are shared between
    input and scores. As in the paper: learnt positions, two pre-norm blocks with a point-wise network of the same
    width, embeddings scaled by sqrt(hidden). Item i has the score r(i) = state · E_i.

    `loss: cross_entropy`: L = -Σ_targets log softmax(r)[target] over the whole catalogue.
    `loss: binary` (the paper's): L = -Σ_targets [log σ(r(target)) + Σ_negatives log(1 - σ(r(negative)))], the
    negatives drawn uniformly from the items that are not in the row.
    """

    per: ClassVar[Literal["target", "user"]] = "user"
    config: SASRecConfig

    def loss(self, batch: SequenceBatch) -> Tensor:
        states, targets, owners = self.states(batch)
        if self.config.loss == "cross_entropy":
            return catalogue_cross_entropy(states, self.encoder.table, targets)
        negatives = draw_negatives(batch.items, owners, self.config.negatives, len(self.encoder.table))
        right = (states * self.encoder.items(targets + 1)).sum(dim=-1)
        wrong = (states[:, None] * self.encoder.items(negatives + 1)).sum(dim=-1)
        return softplus(wrong).sum() - logsigmoid(right).sum()

    def states(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """State before each target [n, hidden], the targets [n] and the rows [n] they are in."""
        states, targets, owners = [], [], []
        for rows, length in length_groups(batch.items):
            items, known = batch.items[rows, -length:], batch.targets[rows, -length:][:, 1:]
            states.append(self.encoder(items[:, :-1])[0][known])
            targets.append(items[:, 1:][known])
            owners.append(rows[known.nonzero()[:, 0]])
        return torch.cat(states), torch.cat(targets), torch.cat(owners)


def draw_negatives(items: Tensor, owners: Tensor, count: int, size: int) -> Tensor:
    """Draw items uniformly from those that are not in a row, without rejection.

    The n-th item outside a row is n plus the number of the row's items before it.

    Rows `items` [B, L], -1 pads, and the row of each target `owners` [n] -> catalogue rows [n, count], of I = `size`.
    A row of all I items has no negative; it gets the last item.
    """
    ordered = items.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ordered = ordered.masked_fill(repeated | (ordered < 0), size).sort(dim=1).values
    outside = size - (ordered < size).sum(dim=1)
    # Items outside the row that lie before its k-th item: a draw of that number or more lies behind it.
    before = ordered - torch.arange(ordered.shape[1], device=items.device)
    draws = torch.rand(len(owners), count, device=items.device, dtype=torch.float64)
    draws = (draws * outside[owners, None]).long()
    shift = torch.searchsorted(before.cummax(dim=1).values[owners], draws, right=True)
    return (draws + shift).clamp(max=size - 1)
