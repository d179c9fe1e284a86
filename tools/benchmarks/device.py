"""A stand-in for a GPU, to count what would make one wait for the host, on any machine.

Tensors on it hold their numbers on the CPU, but say that they are elsewhere (on `meta`, a device of PyTorch that needs no
hardware), so that code takes the path that it takes on a GPU. Every operator is seen on its way: what has to know a value, or a shape that hangs on values,
and what is copied between host and device is counted, with the line that asked; tensors of both together
are refused, as a GPU refuses them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
SHAPES = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive,
    aten.bincount, aten.equal, aten.multinomial, aten.histc
}


class Remote(Tensor):
    """A tensor on the stand-in."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def __repr__(self, **_):
        return f"Remote({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the stand-in")


@dataclass(frozen=True)
class Wait:
    kind: str
    place: str


class StandIn(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits: list[Wait] = []
        self.pinned: set[int] = set()

    def count(self, kind, func):
        self.waits.append(Wait(f"{kind} {func._schema.name.removeprefix('aten::')}", caller()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, spec = tree_flatten((args, kwargs))
        remote = {id(x.inner): x for x in flat if isinstance(x, Remote)}
        packet = func._overloadpacket
        device = kwargs.get("device")
        here = device is not None and torch.device(device) == DEVICE
        plain = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Remote)]
        if packet is aten._to_copy:
            source = args[0]
            own = isinstance(source, Remote)
            there = own if device is None else here
            if own != there and source.numel():
                if not (kwargs.get("non_blocking") and (own or hasattr(source, 'pinned'))):
                    self.count("copies", func)
            kwargs["device"] = None
            kwargs["non_blocking"] = False
            found = func(source.inner if own else source, **kwargs)
            return Remote(found) if there else found
        if packet is aten._local_scalar_dense and remote:
            self.count("value", func)
            return func(args[0].inner)
        if packet is aten.copy_ and remote:
            if len([x for x in args[:2] if isinstance(x, Remote)]) == 1:
                if args[1].dim() or isinstance(args[1], Remote):
                    self.count("copies", func)
            inner = [x.inner if isinstance(x, Remote) else x for x in args]
            func(*inner)
            return args[0]
        if not remote and not here:
            return func(*args, **kwargs)
        if packet in SHAPES:
            self.count("shape", func)
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_):
            for one in args[1]:
                if one is not None and one.dtype in (torch.bool, torch.uint8):
                    self.count("shape", func)
                if one is not None and not isinstance(one, Remote):
                    self.count("copies", func)
            plain = [x for x in plain if not any(x is y for y in args[1])]
        if packet is aten.repeat_interleave and func._overloadname == "Tensor" and kwargs.get("output_size") is None:
            self.count("shape", func)
        if any(x.dim() for x in plain) and packet not in ():
            raise RuntimeError(f"{func}: tensors on the host and on the device: {[(type(x).__name__, tuple(x.shape)) for x in flat if isinstance(x, Tensor)]}")
        if here:
            kwargs["device"] = torch.device("cpu")
        flat, spec = tree_flatten((args, kwargs))
        inner = [x.inner if isinstance(x, Remote) else x for x in flat]
        args, kwargs = tree_unflatten(inner, spec)
        found = func(*args, **kwargs)

        def outer(x):
            if not isinstance(x, Tensor):
                return x
            return remote[id(x)] if id(x) in remote else Remote(x)

        return tree_map(outer, found)


class Made(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            kwargs = {**kwargs, "device": "cpu"}
            return func(*args, **kwargs).to(DEVICE)
        if func is Tensor.pin_memory:
            held = args[0].clone()
            held.pinned = True
            return held
        if func is Tensor.tolist and isinstance(args[0], Remote):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def caller() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if ("/genrl/" in path or "transformers/" in path or "lightning/" in path) and path != __file__:
            return f"{path.split('site-packages/')[-1].replace(str(ROOT) + '/', '')}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def moved(module: nn.Module) -> None:
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                if id(value) not in known:
                    known[id(value)] = nn.Parameter(Remote(value.detach()), value.requires_grad)
                part._parameters[name] = known[id(value)]
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = Remote(value)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    before = torch.is_autocast_enabled

    def enabled(kind=None):
        return False if kind == "meta" else before(kind) if kind else before()

    torch.is_autocast_enabled = enabled
    from contextlib import nullcontext
    auto = torch.autocast
    torch.autocast = lambda kind, *a, **k: nullcontext() if kind == "meta" else auto(kind, *a, **k)
    try:
        with Made(), StandIn() as counted:
            yield counted
    finally:
        torch.is_autocast_enabled = before
        torch.autocast = auto
