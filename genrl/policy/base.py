"""What every policy has besides what it says: weights that are trained, kept and loaded, and a description of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from genrl.batches import Requests
from genrl.errors import CheckpointError
from genrl.layouts.base import Layout, Words
from genrl.policy.guide import Prior
from genrl.policy.protocol import Growth, Next
from genrl.policy.sharding import gathered, shared_out
from genrl.registry import Entry

T = TypeVar("T")


class Spec(ABC):
    """All of a policy but its weights: what it reads and writes, known before there is a model."""

    first_ids: tuple[int, ...]
    """Token id of code 0 of each SID level."""
    sizes: tuple[int, ...]
    """Codes of each SID level."""
    start_id: int
    """Token that opens every sequence."""
    prefix_ids: tuple[int, ...]
    """Tokens of the prompt's prefix."""
    words: Words | None
    """Tokens of thinking; None: the policy does not think."""
    reads_items: ClassVar[bool] = False
    """Whether it reads an item as one token, and learns from rows of items."""

    @property
    def positions(self) -> int | None:
        """Longest sequence that the model was made for, if it says so."""
        return None

    @property
    def pad_id(self) -> int:
        """Token that fills up prompts."""
        return self.start_id

    @abstractmethod
    def check(self, layout: Entry[Layout]) -> None:
        """Refuse a layout that the policy cannot write, before it is built.

        Raises:
            UnsupportedError: with what to use instead.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into a run folder what loading needs besides weights, catalogue and SID table."""


class TrainablePolicy(nn.Module, ABC):
    """A policy (`genrl.policy.protocol.Generative`) with weights of its own.

    Args:
        model: holds the weights.
        spec: what it reads and writes.
    """

    ranks_all: ClassVar[bool] = False
    """Whether it can say the log-probability of every item at once, see `genrl.policy.exhaustive`."""

    def __init__(self, model: Any, spec: Spec) -> None:  # noqa: ANN401 (transformers and peft are untyped)
        super().__init__()
        self.model: Any = model
        self.first_ids, self.sizes = spec.first_ids, spec.sizes
        self.start_id, self.prefix_ids, self.words = spec.start_id, spec.prefix_ids, spec.words
        self.prior: Prior | None = None
        """A frozen recommender that has its say at every node, in sampling, scoring and search."""
        self.branching = "auto"
        """How completions share their prompt: `auto` or one of `genrl.policy.share.WAYS`."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether passes of different shapes agree to rounding of float32: sampling and scoring, for example."""

    @property
    def decays(self) -> Mapping[str, float]:
        """Weight decay of single parameters, by name, beside that of the optimiser."""
        return {}

    @abstractmethod
    def grow(self, requests: Requests, width: int, depth: int, rows: str = "legal", *, apart: bool = False) -> Growth:
        """See `Generative.grow`."""

    @abstractmethod
    def follow(
        self, requests: Requests, written: Tensor, chosen: Tensor, say: Callable[[Next, Next], T], rows: str = "legal"
    ) -> T:
        """See `Generative.follow`."""

    @abstractmethod
    def to_bfloat16(self) -> None:
        """Hold the weights in bfloat16."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """Have the backward pass compute activations again from here on."""

    @abstractmethod
    def compile_decoder(self, **options: Any) -> None:  # noqa: ANN401 (those of torch.compile)
        """Compile passes without a cache: supervised training, scoring and its backward pass."""

    def update_mode(self) -> None:
        """Be the policy that was sampled from, ready for a backward pass: no dropout."""
        self.eval()

    def blocks(self) -> Iterator[nn.Module]:
        """Equal parts that a pass goes through one after the other, each used once: what weights are shared out by."""
        return iter(())

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @property
    def matrices(self) -> set[str]:
        """Names of the trained matrices between the layers' states: not those with a row per token or edge."""
        tables = {id(part.weight) for part in self.model.modules() if isinstance(part, nn.Embedding)}
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        tables |= {id(value) for value in head.parameters()} if head is not None else set()
        linear = {id(part.weight) for part in self.model.modules() if isinstance(part, nn.Linear)} - tables
        return {name for name, value in self.trainable().items() if id(value) in linear}

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights on the CPU: all that a stage has to save; all ranks make it together."""
        whole = ((name, gathered(value.detach())) for name, value in self.trainable().items())
        return {name: value.to("cpu", copy=True).contiguous() for name, value in whole}

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
                own[name].copy_(shared_out(value, own[name]))
