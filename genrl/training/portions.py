"""When memory runs out: what goes through the model at once is halved, and what was begun with it begins anew."""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from genrl.errors import MemoryShortageError, out_of_memory
from genrl.given import reason
from genrl.ops import world_rank, world_size
from genrl.policy.sharding import sharded
from genrl.training.journal import Value

if TYPE_CHECKING:
    from genrl.training.stage import StageModule

T = TypeVar("T")
TRAINING = (
    "What needs less, in this order: trainer.checkpointing=true, model.dtype=bfloat16 with "
    "trainer.precision=bf16-true, a lower rollout.group_size or pack_length of the stage, model.lora.rank=16, "
    "model.quantize=nf4, data.max_history=10."
)
RANKING = "What needs less, in this order: a lower evaluate.beam, model.dtype=bfloat16, data.max_history=10."


class Divisible(Protocol):
    """A batch of groups or rows that can be split."""

    def __len__(self) -> int:
        """How many there are."""

    def portion(self: T, own: slice) -> T:
        """Some of them, with all that belongs to them."""


class Portions:
    """In how many portions something goes through the model; twice as many each time that memory runs out.

    Each process does so on its own: it holds where no pass asks anything of another process.

    Args:
        what: is done with them, for messages.
        unit: what is never split.
        hint: how to begin with smaller portions.
        advice: what helps where one unit is too much.
    """

    def __init__(self, what: str, unit: str = "group", hint: str = "", advice: str = TRAINING) -> None:
        self.what = what
        self.unit = unit
        self.hint = hint
        self.advice = advice
        self.count = 1

    def split(self, units: int) -> list[slice]:
        """The portions of so many units, none of them empty; one of nothing, if there are none.

        Example:
            >>> portions = Portions("update")
            >>> portions.count = 4
            >>> [(part.start, part.stop) for part in portions.split(6)]
            [(0, 2), (2, 4), (4, 5), (5, 6)]
        """
        edges = [0]
        for part in torch.arange(units).tensor_split(max(1, min(self.count, units))):
            edges.append(edges[-1] + len(part))
        return [slice(*pair) for pair in pairwise(edges)]

    def over(self, units: int, work: Callable[[slice], T]) -> list[T]:
        """What `work` makes of each portion; begun anew with smaller ones when memory runs out.

        Raises:
            MemoryShortageError: if memory runs out with one unit at a time.
        """
        while True:
            try:
                return [work(own) for own in self.split(units)]
            except Exception as error:
                self.halve(units, error)
            free()  # behind the handler, where the error no longer holds what had been computed

    def halve(self, units: int, error: Exception) -> None:
        """Take smaller portions of so many units from now on, if it was memory that ran out; else raise the error."""
        if not out_of_memory(error):
            raise error
        if self.count >= units:
            raise MemoryShortageError(
                f"out of memory in the {self.what} with one {self.unit} at a time ({reason(error)}). {self.advice}"
            ) from error
        self.count *= 2
        warnings.warn(
            f"out of memory in the {self.what}{_where()}; its {self.unit}s go through the model in {self.count} "
            f"portions from here on. The result stays the same.{self.hint}",
            stacklevel=2,
        )


def ranking_portions() -> Portions:
    """Those of rankings: requests go through in fewer at once."""
    return Portions("ranking", "request", " evaluate.batch sets how many go through at once.", RANKING)


class Update(Portions):
    """The passes of an optimiser step; where memory runs out, all of them are made once more in smaller portions.

    Lightning asks for a loss and then for its backward pass. It gets the loss of the last portion; the gradients of all
    others are there by then. So under DDP, which exchanges gradients in the backward pass that Lightning asks for, a
    process that has to make more passes says nothing to the others meanwhile, and they need not know.

    Args:
        module: whose step it is.
        unit: what is never split.
        hint: how to begin with smaller portions.
    """

    def __init__(self, module: StageModule, unit: str = "group", hint: str = "") -> None:
        super().__init__("update", unit, hint)
        self.module = module
        self._parts: list[Divisible] = []  # the micro-batches of the step that have had their turn

    def begin(self) -> None:
        """A step begins here, without gradients: Lightning would drop them behind the first forward pass."""
        self._parts = []
        self.module.zero_grad()

    def forward(self, part: Divisible) -> tuple[Tensor, dict[str, Value]]:
        """Loss of a micro-batch, for Lightning's backward pass, and what is to be logged of it.

        With portions it is the loss of the last of them; logged is what the whole micro-batch would log.

        Raises:
            MemoryShortageError: if memory runs out with one unit at a time, or where weights are shared out.
        """
        self._parts.append(part)
        return self._loss([part])

    def backward(self, loss: Tensor, whole: Callable[[Tensor], None]) -> None:
        """Lightning's backward pass `whole` of a loss, and where memory runs out, of the last portion of the step.

        Raises:
            MemoryShortageError: as `forward`, or if other processes have begun to add up their gradients with these.
        """
        while True:
            before = self._exchanged()
            try:
                return whole(loss)
            except Exception as error:
                self._shrink(error, begun=self._exchanged() != before)
            loss.detach_()  # Lightning holds it, and with it all that was computed
            self._forget()
            loss, _ = self._loss(self._parts)

    def _loss(self, parts: Sequence[Divisible]) -> tuple[Tensor, dict[str, Value]]:
        """Loss of the last portion of micro-batches, behind the passes of all others; what is logged of the last one.

        If memory runs out, the step begins anew with all that it has seen.
        """
        while True:
            try:
                for part in parts[:-1]:
                    self._accumulate(part, self.split(len(part)))
                *others, last = self.split(len(parts[-1]))
                values = self._accumulate(parts[-1], others)
                loss, found = self._pass(parts[-1].portion(last) if others else parts[-1])
                return loss, _as_of_one([*values, found]) if others else found
            except Exception as error:
                self._shrink(error)
            self._forget()
            parts = self._parts

    def _accumulate(self, part: Divisible, portions: Sequence[slice]) -> list[dict[str, Value]]:
        """Forward and backward passes of some portions, of which other processes hear nothing; what is to be logged."""
        found = []
        for own in portions:
            loss, values = self._pass(part.portion(own))
            with torch.autocast(self.module.device.type, enabled=False):
                self._backward(loss)
            found.append(values)
        return found

    def _pass(self, part: Divisible) -> tuple[Tensor, dict[str, Value]]:
        with self.module.numerics():
            return self.module.loss(part)

    def _backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those that are there."""
        if not isinstance(self.module.trainer.strategy.model, DistributedDataParallel):
            loss.backward()
            return
        trained = list(self.module.trainable().values())
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)  # no hook of DDP hears of them
        for value, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                value.grad = gradient if value.grad is None else value.grad.add_(gradient)

    def _exchanged(self) -> list[int | None]:
        """Changes whenever a gradient does that other processes are given at once; empty where they are not."""
        wrapped = self.module.trainer.strategy.model
        if not isinstance(wrapped, DistributedDataParallel) or not wrapped.require_backward_grad_sync:
            return []
        return [None if p.grad is None else p.grad._version for p in self.module.trainable().values()]

    def _shrink(self, error: Exception, *, begun: bool = False) -> None:
        """Take smaller portions, if it was memory that ran out and no other process waits for what cannot come.

        Raises:
            MemoryShortageError: if one does.
        """
        shared = sharded(self.module.policy)
        if out_of_memory(error) and (shared or begun):
            why = "whose weights are shared out (trainer.strategy=fsdp)" if shared else "in the midst of its exchange"
            raise MemoryShortageError(
                f"out of memory in the update{_where()}, {why}, where the other processes cannot wait until it has "
                f"begun anew ({reason(error)}), so all end.{self.hint} {self.advice}"
            ) from error
        self.halve(max(map(len, self._parts), default=0), error)

    def _forget(self) -> None:
        """Throw away what the step has gathered."""
        self.module.zero_grad()
        self.module.forget()
        free()


def _as_of_one(portions: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """What a micro-batch logs, from what its portions do.

    The sum of their losses, the mean of all else, or the largest for tags that end in `_max`.
    """
    gathered: dict[str, list[Tensor]] = defaultdict(list)
    for values in portions:
        for tag, value in values.items():
            gathered[tag].append(torch.as_tensor(value))
    total = {tag: torch.stack(values) for tag, values in gathered.items()}
    means: dict[str, Value] = {tag: v.amax() if tag.endswith("_max") else v.mean() for tag, v in total.items()}
    return {**means, "train/loss": total["train/loss"].sum()}


def _where() -> str:
    """Which process of several this is."""
    return f" of process {world_rank()} of {world_size()}" if world_size() > 1 else ""


def free() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
