# ruff: noqa: ANN401 (PyTorch hands on anything)
"""A stand-in for an accelerator, on any machine: it counts what would make the host wait for the device.

Tensors on it keep their numbers in the CPU's memory but say that they are elsewhere: on `meta`, a device of PyTorch
that needs no hardware. So code goes the way that it goes on a GPU, computes the same numbers, and every operator is
seen: whoever asks for a value, for a shape that depends on values or for a copy between host and device is counted with
its line, and tensors of both places together are refused, as a GPU refuses them.

What it does not know are waits inside CUDA libraries and allocators, and the time that anything takes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from typing_extensions import override

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[2]
SEEN = ("/genrl/", "/transformers/", "/lightning/", "/torchmetrics/")
"""Folders of code that is named as asking; PyTorch's own files are passed over."""
aten = torch.ops.aten
SHAPES = {
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten.histc,
    aten.equal,
    aten.multinomial,
}
"""Operators whose result has a shape that depends on values, or whose CUDA kernel looks at values."""
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass(frozen=True)
class Wait:
    """One moment at which the host would wait for the device."""

    kind: str
    """`value`, `shape` or `copy`, and the operator."""
    place: str
    """File and line that asked."""


class Remote(Tensor):
    """A tensor on the stand-in; its numbers are those of `held`, which lies on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[Remote], held: Tensor) -> Remote:
        made: Remote = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Remote({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func}: a tensor of the stand-in is used outside of `stand_in`")


class StandIn(TorchDispatchMode):
    """Computes what is asked of the stand-in, and counts the waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def take(self) -> list[Wait]:
        """The waits so far; then begin anew."""
        found, self.waits = self.waits, []
        return found

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operator = dict(kwargs or {}), func._overloadpacket
        flat, _ = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        remote = {id(value.held): value for value in tensors if isinstance(value, Remote)}
        device = kwargs.get("device")
        here = device is not None and torch.device(device) == DEVICE
        if operator is aten._to_copy:
            return self._copied(func, args[0], kwargs, here if device is not None else bool(remote))
        if not remote and not here:
            return func(*args, **kwargs)
        if operator is aten._local_scalar_dense:
            self._count("value", func)
            return func(args[0].held)
        if operator is aten.copy_:
            if isinstance(args[0], Remote) != isinstance(args[1], Remote) and args[1].numel():
                self._count("copy", func)
            func(*map(_held, args))
            return args[0]
        self._look(func, operator, args, kwargs)
        _same_place(func, tensors, args[1] if operator in INDEXED else ())
        if here:
            kwargs["device"] = torch.device("cpu")
        flat, form = tree_flatten((args, kwargs))
        own, options = tree_unflatten([_held(value) for value in flat], form)
        return tree_map(lambda value: _outer(value, remote), func(*own, **options))

    def _copied(self, func: Any, source: Tensor, kwargs: dict[str, Any], there: bool) -> Tensor:
        """A copy of a tensor, on the stand-in or on the host."""
        own = isinstance(source, Remote)
        quiet = kwargs.get("non_blocking") and not own and hasattr(source, "pinned")
        if own != there and source.numel() and not quiet:
            self._count("copy", func)
        found = func(_held(source), **{**kwargs, "device": None, "non_blocking": False})
        return Remote(found) if there else found

    def _look(self, func: Any, operator: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count what the operator has to know, or to fetch."""
        sized = kwargs.get("output_size") is not None
        if operator in SHAPES or (func is aten.repeat_interleave.Tensor and not sized):
            self._count("shape", func)
        for index in args[1] if operator in INDEXED else ():
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._count("shape", func)
            if index is not None and not isinstance(index, Remote):
                self._count("copy", func)

    def _count(self, kind: str, func: Any) -> None:
        self.waits.append(Wait(f"{kind} {func._schema.name.removeprefix('aten::')}", _asking(sys._getframe(2))))


class _Functions(TorchFunctionMode):
    """Functions that PyTorch answers without an operator for tensors on `meta`, or for want of an accelerator."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is Tensor.pin_memory:
            copy = args[0].clone()
            copy.pinned = True
            return copy
        if func is Tensor.tolist and isinstance(args[0], Remote):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class StandInStrategy(SingleDeviceStrategy):
    """Trains on the stand-in: `L.Trainer(accelerator="cpu", strategy=StandInStrategy())` inside `stand_in`."""

    def __init__(self) -> None:
        super().__init__(DEVICE)

    @override
    def setup_environment(self) -> None:
        """The accelerator, which is the CPU, would refuse the device."""

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        move(self.model)
        self.model.to(DEVICE)

    @override
    def teardown(self) -> None:
        """What was trained stays where it is."""


def move(module: nn.Module) -> nn.Module:
    """Put the parameters and buffers of a module on the stand-in; tied ones stay tied."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and not isinstance(value, Remote):
                if id(value) not in known:
                    known[id(value)] = nn.Parameter(Remote(value.detach()), value.requires_grad)
                part._parameters[name] = known[id(value)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, Remote):
                part._buffers[name] = Remote(buffer)
    return module


def there(value: Tensor) -> Tensor:
    """The numbers of a tensor that may be on the stand-in, without a wait."""
    return value.held if isinstance(value, Remote) else value


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Inside the block there is a device `DEVICE` that computes."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def is_enabled(*kind: str) -> bool:
        return kind != ("meta",) and enabled(*kind)

    def cast(kind: str, *options: Any, **named: Any) -> Any:
        return nullcontext() if kind == "meta" else autocast(kind, *options, **named)

    with (
        patch.object(torch, "is_autocast_enabled", is_enabled),
        patch.object(torch, "autocast", cast),
        patch.object(torch.accelerator, "is_available", lambda: True),
        _Functions(),
        StandIn() as counted,
    ):
        yield counted


def told(waits: Sequence[Wait]) -> str:
    """Waits by place, most first."""
    counts = Counter(f"{wait.kind} {wait.place}" for wait in waits)
    return ", ".join(f"{count} x {what}" for what, count in counts.most_common()) or "none"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Remote) else value


def _outer(value: Any, remote: dict[int, Remote]) -> Any:
    """A result on the stand-in; an argument that was changed in place is the tensor that it was."""
    if not isinstance(value, Tensor):
        return value
    return remote[id(value)] if id(value) in remote else Remote(value)


def _same_place(func: Any, tensors: Sequence[Tensor], indices: Sequence[Tensor | None]) -> None:
    """Refuse tensors of host and device together, but for scalars and indices.

    Raises:
        RuntimeError: naming the operator and the shapes.
    """
    free = {id(index) for index in indices if index is not None}
    own = [value for value in tensors if not isinstance(value, Remote) and value.dim() and id(value) not in free]
    if own:
        shapes = [list(value.shape) for value in own]
        raise RuntimeError(f"{func}: tensors of shape {shapes} are on the host, others on the device ({_asking()})")


def _asking(frame: FrameType | None = None) -> str:
    """File and line of the code that asks, as far as it is not PyTorch's own."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if any(folder in path for folder in SEEN) and path != __file__:
            return f"{path.split('site-packages/')[-1].removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
