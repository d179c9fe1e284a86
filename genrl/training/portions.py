"""When memory runs out: groups go through the model in more and smaller portions, each of whole groups."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch

from genrl.errors import MemoryShortageError, out_of_memory

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


def free() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The state of the generators that dropout draws from."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []))


def restore_random(state: tuple[torch.Tensor, ...], device: torch.device) -> None:
    """Go back to a state of `random_state`."""
    torch.set_rng_state(state[0])
    for value in state[1:]:
        torch.cuda.set_rng_state(value, device)
