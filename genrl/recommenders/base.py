"""What a baseline is: something that ranks the catalogue after a history; some learn to do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from genrl.batches import Ranking
from genrl.catalog.dataset import Dataset
from genrl.config.schema import ModelConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.policy.model import Policy
from genrl.prompts.packing import SequenceBatch
from genrl.registry import Registry
from genrl.sid.table import SidTable


class Ranker(Protocol):
    """Ranks the catalogue for a batch of histories."""

    def __call__(self, histories: Tensor, width: int) -> Ranking:
        """Rank.

        Args:
            histories: catalogue rows [P, H], right-aligned (latest item last), -1 pads.
            width: W, items per row; rows of a smaller catalogue end in -1.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """What a baseline may build on."""

    dataset: Dataset
    table: SidTable
    """Semantic IDs, for those that read or write them."""
    model: ModelConfig
    """Backbone, for those that have a language model."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a recommender is trained; each has defaults of its own."""

    max_epochs: int = 100
    """Passes over the data at most."""
    patience: int = 10
    """Validations without a better NDCG before training stops; 0 never stops early."""
    validate_every: float = 1.0
    """Passes between validations; a resumable checkpoint follows each."""
    batch: int = 128
    """Rows (users, or targets) per optimiser step."""
    max_length: int = 50
    """Latest items of a history that the model reads."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 1.0
    """Share of the peak that a cosine ends at, reached at the last step of `max_epochs`; 1 keeps the rate constant."""
    weight_decay: float = 0.0
    """AdamW weight decay of matrices."""
    warmup_steps: int = 0
    """Linear warm-up."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length}; a model must read at least 1 item.")
        for name, least in (("max_epochs", 1), ("batch", 1), ("patience", 0), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least {least}.")
        for name in ("validate_every", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be above 0.")
        for name in ("final_learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 0.")


class Recommender(nn.Module, ABC):
    """A baseline that learns from item sequences.

    Attributes:
        per: whether a training row is a user's sequence with a target at every place, or the history of one target.
        exact: whether `rank` scores every item, so that its rankings are the best there are.
        config: its options, those of training among them.
    """

    exact: ClassVar[bool] = False
    per: ClassVar[Literal["target", "user"]]
    config: TrainingConfig

    @abstractmethod
    def loss(self, batch: SequenceBatch) -> Tensor:
        """Sum of the losses of all targets of a batch, a scalar; the caller divides it by `batch.share`."""

    @abstractmethod
    def rank(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        """Rank the catalogue.

        Args:
            histories: catalogue rows [P, H], right-aligned (latest item last), -1 pads; any length, also all padding.
            width: W, items per row; rows with fewer items end in -1.
            deny: [P, D] catalogue rows that may not be ranked, -1 is none.
        """

    @property
    def backbone(self) -> Policy | None:
        """Its language model, if it has one; the trainer's options of models apply to it."""
        return None

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights on the CPU: all that has to be saved."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.state_dict().items()}

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Put saved trained weights in place.

        Raises:
            CheckpointError: if names or shapes are those of another model.
        """
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{origin} holds the weights of another model: {' '.join(str(error).split())[:300]}"
            ) from error


BASELINES: Registry[Ranker | Recommender] = Registry("baseline", "genrl.recommenders")
