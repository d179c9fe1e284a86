"""Masked and grouped tensor functions that the whole package shares, and what ranks tell each other."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genrl.errors import ComponentError
from genrl.foreign import described

T = TypeVar("T")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect(tensor: Tensor, name: str, shape: tuple[int | None, ...], *dtypes: torch.dtype) -> None:
    """Check rank, the sizes that are not None, and the dtype; metadata only, so no device is synchronised.

    Raises:
        ValueError: naming the tensor, what it is and what it should be.

    Example:
        >>> expect(torch.zeros(2, 3), "rewards", (2, None), torch.float32)
    """
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{wanted}]")
    if dtypes and tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")


def answered(
    value: object, what: str, shape: tuple[int, ...], device: torch.device, dtypes: tuple[torch.dtype, ...] = FLOATS
) -> Tensor:
    """What a component returned, which must be a tensor of that shape, device and dtype; metadata only, as in `expect`.

    Raises:
        ComponentError: saying who returned it (`what`), what was expected and what came.
    """
    fits = isinstance(value, Tensor) and tuple(value.shape) == shape and value.device == device
    if not fits or value.dtype not in dtypes:  # type: ignore[attr-defined]
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ComponentError(
            f"{what} must return a tensor of {kinds} with shape {list(shape)} on {device}; it returned "
            f"{described(value)}."
        )
    return value  # type: ignore[return-value]


def sent(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; nothing waits for what goes from the host to an accelerator: it leaves pinned memory.

    Example:
        >>> sent(torch.ones(2), "cpu")
        tensor([1., 1.])
    """
    aimed = torch.device(device)
    if value.device.type != "cpu" or aimed.type in ("cpu", "mps") or not torch.accelerator.is_available():
        return value.to(aimed)
    return value.pin_memory().to(aimed, non_blocking=True)


def fetched(values: Sequence[Tensor]) -> list[Tensor]:
    """Scalars in float32 on the host; those that are elsewhere come by one copy, so that the host waits once.

    Example:
        >>> fetched([torch.tensor(1), torch.tensor(2.5)])
        [tensor(1.), tensor(2.5000)]
    """
    found = [value.detach().float() for value in values]
    away = [place for place, value in enumerate(found) if value.device.type != "cpu"]
    if away:
        for place, value in zip(away, torch.stack([found[place] for place in away]).cpu().unbind(), strict=True):
            found[place] = value
    return found


LOOK = 8
"""Tokens between two looks at what has ended, where each look makes the host wait for the device."""


def looks(place: int, device: torch.device) -> bool:
    """Whether the host looks at what has ended before token `place`: always on a CPU, else at every `LOOK`-th.

    Example:
        >>> [looks(place, torch.device("cuda")) for place in (0, 1, 8)]
        [True, False, True]
    """
    return device.type == "cpu" or place % LOOK == 0


def exact(values: Tensor) -> Tensor:
    """Values in float32, or float64 if that is what they are in: what must not be rounded to bfloat16."""
    return values if values.dtype == torch.float64 else values.float()


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite in any of several tensors; looks at the device once."""
    return bool(torch.stack([value.isfinite().all() for value in values]).all())


def where_not_finite(values: Tensor) -> tuple[int, float, int] | None:
    """The first row of [B] or [B, n] with a value that is NaN or infinite, that value, and how many more such rows.

    Example:
        >>> where_not_finite(torch.tensor([0.0, float("inf"), 1.0, float("nan")]))
        (1, inf, 1)
    """
    table = values.reshape(len(values), -1)
    wrong = ~table.isfinite()
    rows = wrong.any(1).nonzero()[:, 0].tolist()
    return (rows[0], float(table[rows[0]][wrong[rows[0]]][0]), len(rows) - 1) if rows else None


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` holds; 0 where it holds nowhere.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def left_padded(rows: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one table [P, L], behind `fill`, and where it holds what they hold, bool [P, L].

    Example:
        >>> left_padded([torch.tensor([5]), torch.tensor([6, 7])], 0)[0].tolist()
        [[0, 5], [6, 7]]
    """
    table = pad_sequence(list(rows), batch_first=True, padding_value=fill, padding_side="left")
    lengths = torch.tensor([len(row) for row in rows])
    return table, torch.arange(table.shape[1]) >= table.shape[1] - lengths[:, None]


def group_view(values: Tensor, group_size: int) -> Tensor:
    """View rows [B, ...] as groups [P, G, ...].

    Raises:
        ValueError: if B is not a multiple of `group_size`.
    """
    if values.shape[0] % group_size:
        raise ValueError(f"{values.shape[0]} rows do not divide into groups of {group_size}")
    return values.view(-1, group_size, *values.shape[1:])


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sum `values` [B, T] per row and segment id [B, T] in [-1, count); ids of -1 are left out.

    Returns:
        Sums [B, count] with the dtype of `values`.

    Example:
        >>> segment_sum(torch.ones(1, 4), torch.tensor([[0, 0, 1, -1]]), 2)
        tensor([[2., 1.]])
    """
    sums = values.new_zeros(values.shape[0], count + 1)
    return sums.scatter_add(1, torch.where(segments < 0, count, segments), values)[:, :count]


def segment_gather(values: Tensor, segments: Tensor) -> Tensor:
    """Spread per-segment `values` [B, S] to tokens by segment id [B, T]; ids of -1 get 0.

    Example:
        >>> segment_gather(torch.tensor([[5.0, 7.0]]), torch.tensor([[0, 1, -1]]))
        tensor([[5., 7., 0.]])
    """
    return values.gather(1, segments.clamp(min=0)).masked_fill(segments < 0, 0)


def seed_of(*key: int) -> int:
    """One seed from several numbers, different for different numbers.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if _distributed() else 1


def world_rank() -> int:
    """This process among those that train together; 0 without torch.distributed."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_sum(value: Tensor) -> Tensor:
    """Sum of `value` over all ranks, as a new tensor; the value itself on one process."""
    if not _distributed():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def world_max(value: Tensor) -> Tensor:
    """Largest `value` over all ranks, as a new tensor; the value itself on one process."""
    if not _distributed():
        return value
    largest = value.detach().clone()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest


def world_gather(value: T) -> list[T]:
    """What each rank holds, in the order of ranks; tensors in it belong on the CPU. The value itself on one process."""
    if not _distributed():
        return [value]
    everyone = [value] * world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def read_as(items: Tensor) -> Tensor:
    """What stands before each item of rows [B, L], right-aligned, -1 pads: item i as i + 1, the start as 0, -1 pads.

    Example:
        >>> read_as(torch.tensor([[-1, 7, 3], [5, 2, 9]])).tolist()
        [[-1, 0, 8], [0, 6, 3]]
    """
    return torch.where(items < 0, -1, torch.nn.functional.pad(items[:, :-1] + 1, (1, 0)))
