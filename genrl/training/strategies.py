"""How the processes of a run share its work: Lightning's own strategies, by the names of `trainer.strategy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from genrl.config.schema import TrainerConfig
from genrl.policy.sharding import gathered, shared_out


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, whose checkpoints are those of the others: one file of whole tensors.

    Lightning's own saves the state of a single optimiser of torch by the names of all weights; ours may be two (Muon
    beside AdamW), and of a stage only what it trains is kept.

    Args:
        ranks: of all nodes.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shares of the weights; the stage gathers those that it keeps."""
        return ParallelStrategy.lightning_module_state_dict(self)

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = ParallelStrategy.optimizer_state(self, optimizer)
        whole: dict[str, Any] = tree_map_only(Tensor, lambda value: gathered(value).cpu(), state)
        return whole

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        saved = checkpoint["state_dict"]
        shares = {name: shared_out(value, own[name]) if name in own else value for name, value in saved.items()}
        self.lightning_module.load_state_dict(shares, strict=strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)
        for optimizer in self.optimizers:
            for part in getattr(optimizer, "parts", (optimizer,)):
                for parameter, values in part.state.items():
                    values |= {name: shared_out(value, parameter) for name, value in values.items()}


def strategy_of(config: TrainerConfig) -> str | Strategy:
    """What Lightning is given for `trainer.strategy`."""
    processes = config.devices * config.num_nodes
    if config.strategy == "fsdp":
        return Sharded(processes)
    return "ddp" if config.strategy == "ddp" or processes > 1 else "auto"
