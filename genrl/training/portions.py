"""When memory runs out: groups go through the model in more and smaller portions, each of whole groups."""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from genrl.errors import MemoryShortageError, out_of_memory
from genrl.ops import world_size

if TYPE_CHECKING:
    from genrl.training.rl import Part, RLModule

T = TypeVar("T")
ADVICE = (
    "What needs less, in this order: trainer.checkpointing=true, model.dtype=bfloat16 with "
    "trainer.precision=bf16-true, a lower rollout.group_size, model.lora.rank=16, model.quantize=nf4, "
    "data.max_history=10."
)


class Portions:
    """In how many portions groups go through the model; twice as many each time that memory runs out.

    Args:
        what: is done with them, for messages.
        hint: how to begin with smaller portions.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        self.hint = hint
        self.count = 1

    def split(self, groups: int) -> list[slice]:
        """The portions of so many groups, none of them empty.

        Example:
            >>> portions = Portions("update")
            >>> portions.count = 4
            >>> [(part.start, part.stop) for part in portions.split(6)]
            [(0, 2), (2, 4), (4, 5), (5, 6)]
        """
        edges = [0]
        for part in torch.arange(groups).tensor_split(self.count):
            edges.append(edges[-1] + len(part))
        return [slice(*pair) for pair in pairwise(edges) if pair[0] < pair[1]]

    def over(self, groups: int, work: Callable[[slice], T]) -> list[T]:
        """What `work` makes of each portion; begun anew with smaller ones when memory runs out.

        Raises:
            MemoryShortageError: if memory runs out with one group at a time.
        """
        while True:
            try:
                return [work(own) for own in self.split(groups)]
            except Exception as error:
                self.halve(groups, error)
            free()  # behind the handler, where the error no longer holds what had been computed

    def halve(self, groups: int, error: Exception) -> None:
        """Take smaller portions of so many groups from now on, if it was memory that ran out; else raise the error."""
        if not out_of_memory(error):
            raise error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if self.count >= groups:
            raise MemoryShortageError(
                f"out of memory in the {self.what} with one group at a time ({reason}). {ADVICE}"
            ) from error
        self.count *= 2
        warnings.warn(
            f"out of memory in the {self.what}; its groups go through the model in {self.count} portions from here "
            f"on. The result stays the same.{self.hint}",
            stacklevel=2,
        )


class Update(Portions):
    """The passes of an optimiser step; where memory runs out, all of them are made once more in smaller portions.

    Lightning asks for a loss and then for its backward pass. Where portions are needed the loss that it gets is an
    empty 0, and their forward and backward passes take the place of its backward pass.

    Args:
        module: whose step it is.
    """

    def __init__(self, module: RLModule) -> None:
        super().__init__("update", " rollout.micro_batch sets how many prompts go through at once.")
        self.module = module
        self._parts: list[Part] = []  # the micro-batches of the step that have had their turn
        self._todo: list[Part] = []  # those of them whose passes the next backward pass makes in portions
        self._mark: dict[str, int] = {}

    def begin(self) -> None:
        """A step begins here."""
        self._parts, self._todo, self._mark = [], [], self.module.journal.mark()

    def forward(self, part: Part) -> Tensor:
        """Loss of a micro-batch."""
        self._parts.append(part)
        if self.count == 1:
            try:
                loss, values = self.module.loss(part)
                self.module.journal.add(values)
                return loss
            except Exception as error:
                self._shrink(error)
            free()
        self._todo = [part]
        return torch.zeros((), device=self.module.device, requires_grad=True)

    def backward(self, loss: Tensor, whole: Callable[[], None]) -> None:
        """Backward pass of a loss, by `whole` where it can be made at once."""
        while True:
            try:
                for part in self._todo:
                    self._in_portions(part)
                if not self._todo:
                    whole()
                break
            except Exception as error:
                self._shrink(error)
            loss.detach_()  # Lightning holds it, and with it all that was computed
            self._forget()
            self._todo = self._parts
        self._todo = []

    def _in_portions(self, part: Part) -> None:
        """Forward and backward pass of a micro-batch, portion by portion; what is logged is as of one."""
        gathered: dict[str, list[Tensor]] = defaultdict(list)
        for own in self.split(len(part)):
            portion = part.groups(torch.arange(own.start, own.stop, device=self.module.device))
            with self.module.numerics():
                loss, values = self.module.loss(portion)
            loss.backward()
            for tag, value in values.items():
                gathered[tag].append(torch.as_tensor(value))
        total = {tag: torch.stack(values) for tag, values in gathered.items()}
        means = {tag: values.amax() if tag.endswith("_max") else values.mean() for tag, values in total.items()}
        self.module.journal.add({**means, "train/loss": total["train/loss"].sum()})

    def _shrink(self, error: Exception) -> None:
        """Take smaller portions, if it was memory that ran out; one process alone may.

        Raises:
            MemoryShortageError: if several processes train, which all have to make the same passes.
        """
        if out_of_memory(error) and world_size() > 1:
            raise MemoryShortageError(
                f"out of memory in the update, which several processes have to split alike, so none does it on its "
                f"own. Set rollout.micro_batch to fewer prompts. {ADVICE}"
            ) from error
        self.halve(max(map(len, self._parts), default=0), error)

    def _forget(self) -> None:
        """Throw away what the step has gathered."""
        self.module.policy.zero_grad()
        self.module.journal.back(self._mark)
        self.module.gradients.forget()
        self.module.skips.passes()
        free()


def free() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
