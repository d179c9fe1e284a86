"""A policy whose weights are shared out over the ranks: FSDP2, a group of weights per block and one for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from genrl.policy.base import TrainablePolicy


def shard(policy: TrainablePolicy, mesh: DeviceMesh) -> None:
    """Leave each rank of a mesh [ranks] its share of every weight, in place.

    In updates the blocks' weights are gathered one block at a time, forward and backward; what is outside of blocks
    (embeddings, head) is whole from the forward pass to the end of the backward pass.
    """
    for block in policy.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def sharded(policy: nn.Module) -> bool:
    """Whether `shard` was called."""
    return isinstance(policy, FSDPModule)


@contextmanager
def whole(policy: TrainablePolicy) -> Iterator[None]:
    """Keep all weights of a policy in every rank for the block, without gradient; nothing to do where they are whole.

    All ranks enter and leave together. Inside, passes ask nothing of the other ranks, so each may make as many as its
    rows need: rows that end at different times, other numbers of batches, other ways to share a prompt.
    """
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    blocks = [part for part in parts if part is not policy]
    for part in parts:
        part.unshard()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    try:
        with torch.no_grad():
            yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def gathered(value: Tensor) -> Tensor:
    """The whole of a tensor that is shared out, on all ranks, which ask for it together; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_out(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a whole tensor that all ranks hold, where `like` is shared out; else the tensor itself."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    here = value.detach().to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
