"""What a recommender is: whatever ranks the catalogue for requests, and can be kept and loaded without any data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from genrl.batches import Ranking, Requests
from genrl.catalog.dataset import Dataset
from genrl.config.saved import read_saved, refuse_remote_code
from genrl.config.schema import EvaluateConfig, ModelConfig, RunConfig, TrainerConfig
from genrl.errors import CheckpointError, ConfigError, UnsupportedError
from genrl.files import read_weights, save_weights
from genrl.metrics.functional import exclude_history, first_occurrences, needed_width, seen
from genrl.ops import seed_of
from genrl.options import option
from genrl.policy.base import TrainablePolicy
from genrl.policy.model import Policy
from genrl.prompts.packing import SequenceBatch
from genrl.prompts.template import PromptTemplate, RequestTemplate
from genrl.recommenders.bundle import read_problem, save_problem
from genrl.registry import Registry
from genrl.sid.table import SidTable

KINDS = ("raw", "excluded")
"""Rankings of the whole catalogue, and those without the items of each user's history."""
WEIGHTS = "weights.safetensors"
"""File of a run folder that holds the trained weights."""


@dataclass(frozen=True)
class Problem:
    """What a recommender may build on."""

    dataset: Dataset
    """Catalogue and sequences; the sequences are empty where a recommender is loaded, which learns nothing any more."""
    table: SidTable
    """Semantic IDs, for those that read or write them."""
    model: ModelConfig
    """Backbone, for those that have a language model."""
    tokenizer: Path | None = None
    """Folder of the tokenizer of a loaded recommender; None where it is yet to be made."""
    prior: Path | None = None
    """Folder of the prior that a loaded policy has beside it; None: it is that of the configuration, if any."""


class Recommender(Protocol):
    """Ranks the catalogue for requests: a policy, a baseline, or a plug-in's."""

    problem: Problem

    @property
    def thinks(self) -> bool:
        """Whether rankings come from thinking, which may fail."""
        ...

    @property
    def template(self) -> RequestTemplate:
        """How requests are written."""
        ...

    def write(self, histories: Tensor, pool: Tensor | None = None, ages: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and mask [P, L] of requests with histories [P, H], and with candidate pools [P, C] if there are some.

        `ages` [P, H] are the days from each item of a history to its latest, which some prompts tell. A policy whose
        prompts tell more than that in training warns of what these lack.

        Raises:
            ConfigError: if prompts tell days and there are none, or there are some and prompts do not tell them.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where rankings are made."""
        ...

    def rank(self, requests: Requests, width: int, exact: bool = False) -> Ranking:
        """The `width` best of the items that each request may get; rows with fewer items end in -1.

        Requests may be on any device. `exact`: the list must be the best of all items that are allowed.

        Raises:
            UnsupportedError: if it cannot tell whether a list is exact.
        """
        ...

    def rankings(self, requests: Requests, config: EvaluateConfig, kinds: Sequence[str] = KINDS) -> dict[str, Ranking]:
        """Rankings of the whole catalogue, `raw` and with each user's history `excluded`, or one of these `kinds`."""
        ...

    def log_probs(self, requests: Requests) -> Tensor:
        """Log-probabilities [P, I] of the catalogue as the next item, in nats, all finite; filters are not looked at.

        Raises:
            UnsupportedError: if it gives items no probabilities.
        """
        ...

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Put trained weights in place, which `origin` holds."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that is needed to rank again, beside the config.yaml of the run."""
        ...

    @classmethod
    def load(cls, folder: Path, overrides: tuple[str, ...] = ()) -> Recommender:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if something is missing, damaged or of another model.
        """
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """How a recommender is trained; each has defaults of its own."""

    max_epochs: int = option(100, ge=1)
    """Passes over the data at most."""
    patience: int = option(10, ge=0)
    """Validations without a better NDCG before training stops; 0 never stops early."""
    validate_every: float = option(1.0, gt=0)
    """Passes between validations; a resumable checkpoint follows each."""
    batch: int = option(128, ge=1)
    """Rows (users, or targets) per optimiser step."""
    max_length: int = option(50, ge=1, says="must be at least 1 item that the model reads")
    """Latest items of a history that the model reads."""
    learning_rate: float = option(1e-3, gt=0)
    """Peak learning rate."""
    final_learning_rate: float = option(1.0, ge=0)
    """Share of the peak that a cosine ends at, reached at the last step of `max_epochs`; 1 keeps the rate constant."""
    weight_decay: float = option(0.0, ge=0)
    """AdamW weight decay of matrices."""
    warmup_steps: int = option(0, ge=0)
    """Linear warm-up."""


class Baseline(nn.Module, ABC):
    """A recommender that a policy is compared with; its weights or counts are its parameters and persistent buffers.

    Attributes:
        exact: whether `best` scores every item, so that its rankings are the best there are; others are certified only
            as far as `best` gives a bound.
        name: what it is registered as.
        problem: what it was built on.
    """

    exact: ClassVar[bool] = True
    thinks: ClassVar[bool] = False
    name: str = "this baseline"
    problem: Problem
    trainer: TrainerConfig = TrainerConfig()

    @abstractmethod
    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        """Rank the catalogue.

        Args:
            histories: catalogue rows [P, H], right-aligned (latest item last), -1 pads; any length, also all padding.
            width: W, items per row; rows with fewer items end in -1.
            deny: [P, D] catalogue rows that may not be ranked, -1 is none.
        """

    @property
    def template(self) -> PromptTemplate:  # requests are not written: a baseline reads their histories
        return PromptTemplate(start_id=0, prefix_ids=(), sid_tokens=self.problem.table.codes, pad_id=0)

    def write(self, histories: Tensor, pool: Tensor | None = None, ages: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if ages is not None:
            raise ConfigError("a baseline reads no days. Leave them out (recommend --days).")
        return self.template.render(histories[:, :0])

    @property
    def device(self) -> torch.device:
        return next((value.device for value in self.state_dict().values()), torch.device("cpu"))

    @torch.no_grad()
    def rank(self, requests: Requests, width: int, exact: bool = False) -> Ranking:
        if exact and not self.exact:
            raise UnsupportedError(
                f"{self.name} does not say that it scores every item, so its list is not known to be exact. Leave "
                f"--exact out, or set `exact = True` in its class if its method `best` does."
            )
        requests = requests.to(str(self.device))
        with numerics(self.trainer, self.device):
            found = self.best(requests.history, width, denied(requests, len(self.problem.dataset.catalog)))
        if found.bound is None and not self.exact:
            return replace(found, bound=torch.full_like(found.scores[:, 0], float("inf")))
        return found

    @torch.no_grad()
    def log_probs(self, requests: Requests) -> Tensor:
        return self.likelihoods(requests.history.to(self.device))

    def likelihoods(self, histories: Tensor) -> Tensor:
        """Log-probabilities [P, I] of what follows histories [P, H]; how scores become them is the baseline's own rule.

        Raises:
            UnsupportedError: if there is no such rule.
        """
        raise UnsupportedError(
            f"{self.name} ranks items without giving them probabilities, so it can be neither prior nor teacher. "
            f"Take a run of sasrec, rearec, item_knn or most_popular."
        )

    def rankings(self, requests: Requests, config: EvaluateConfig, kinds: Sequence[str] = KINDS) -> dict[str, Ranking]:
        self.eval()
        items = len(self.problem.table)
        width = needed_width(config.k, self.problem.table.codes if config.level == "sid" else None)
        found = {}
        for kind in kinds:
            if kind == "raw":
                found[kind] = self.rank(requests, width)
            else:
                unseen = self.rank(replace(requests, deny=deniable(requests, items)), width)
                found[kind] = exclude_history(unseen, requests.history)
        return found

    def save(self, folder: Path) -> None:
        save_weights(self.state(), folder / WEIGHTS)
        save_problem(folder, self.problem.dataset, self.problem.table)

    @classmethod
    def load(cls, folder: Path, overrides: tuple[str, ...] = ()) -> Baseline:
        config = read_saved(folder, overrides)
        refuse_remote_code(folder, config, overrides)
        dataset, table = read_problem(folder)
        made = build_baseline(config, Problem(dataset, table, config.model, folder / "tokenizer"))
        made.load_state(read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
        made.eval()
        return made

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights on the CPU: all that has to be saved."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.state_dict().items()}

    def load_state(self, state: dict[str, Tensor], origin: str) -> None:
        """Put saved weights in place, or raise a CheckpointError if names or shapes are those of another model."""
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{origin} holds the weights of another model: {' '.join(str(error).split())[:300]}"
            ) from error


class TrainedBaseline(Baseline):
    """A baseline that learns from item sequences.

    Attributes:
        per: whether a training row is a user's sequence with a target at every place, or the history of one target.
        config: its options, those of training among them.
    """

    exact: ClassVar[bool] = False
    per: ClassVar[Literal["target", "user"]]
    config: TrainingConfig

    @abstractmethod
    def loss(self, batch: SequenceBatch) -> Tensor:
        """Sum of the losses of all targets of a batch, a scalar; the caller divides it by `batch.share`."""

    @property
    def backbone(self) -> Policy | None:
        """Its language model, if it has one; the trainer's options of models apply to it."""
        return None

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


BASELINES: Registry[Baseline] = Registry("baseline", "genrl.recommenders", Baseline)


def build_baseline(config: RunConfig, problem: Problem) -> Baseline:
    """The configured baseline, not yet trained.

    Raises:
        ConfigError: if a plug-in's is no `Baseline`.
    """
    options = {name: value for name, value in config.baseline.items() if name != "name"}
    torch.manual_seed(seed_of(config.seed))
    made: Any = BASELINES.build(config.baseline["name"], options, problem=problem)
    if not isinstance(made, Baseline):
        raise ConfigError(
            f"baseline {config.baseline['name']!r} gives a {type(made).__name__}. It must give a "
            f"genrl.recommenders.Baseline, e.g. a MostPopular, or an object of a subclass with a method `best`."
        )
    made.name, made.problem, made.trainer = BASELINES.entry(config.baseline["name"]).name, problem, config.trainer
    if isinstance(made, TrainedBaseline) and made.backbone is not None:
        equip(made.backbone, config.trainer)
    return made


def numerics(config: TrainerConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Precision of forward passes outside Lightning's loops."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed")


def equip(policy: TrainablePolicy, config: TrainerConfig) -> None:
    """Give a policy what the trainer says of its passes."""
    if config.precision == "bf16-true":
        policy.to_bfloat16()
    policy.branching = config.branching
    if config.checkpointing:
        policy.checkpoint_activations()
    if config.compile:
        policy.compile_decoder()


def denied(requests: Requests, items: int) -> Tensor | None:
    """Catalogue rows [P, D] that requests must not get, by their pools as well; -1 is none, None: nothing is denied."""
    if requests.pool is None:
        return requests.deny
    every = torch.ones(len(requests), items + 1, dtype=torch.bool, device=requests.pool.device)
    every.scatter_(1, torch.where(requests.pool < 0, items, requests.pool), False)
    if requests.deny is not None:
        every.scatter_(1, torch.where(requests.deny < 0, items, requests.deny), True)
    return torch.where(every[:, :items], torch.arange(items, device=every.device), -1)


def deniable(requests: Requests, items: int, wanted: int = 1) -> Tensor:
    """Histories [P, H] as filters: nothing is denied to a user to whom fewer than `wanted` items are new.

    The items are those of the catalogue, or of the request's pool.
    """
    history = requests.history
    if requests.pool is None:
        left = items - first_occurrences(history).sum(1)
    else:
        left = (first_occurrences(requests.pool) & ~seen(requests.pool, history)).sum(1)
    return history.masked_fill((left < wanted)[:, None], -1)
