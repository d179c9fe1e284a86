"""What everything that is trained shares: validation by full-catalogue ranking, the optimiser, checkpoints."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from genrl.batches import Ranking, Requests
from genrl.config.schema import EvaluateConfig
from genrl.errors import NonFiniteError
from genrl.layouts.base import Layout
from genrl.metrics.ranking import RankingMetrics
from genrl.policy.base import TrainablePolicy
from genrl.policy.sharding import gathered, shard, sharded, whole
from genrl.prompts.template import EvaluationBatches
from genrl.recommenders.policy import decoding
from genrl.recommenders.searching import rankings
from genrl.training.muon import make_optimiser

REMEDY = "Lower the learning rate, check trainer.precision, or look at the batch for extreme ratios."


class RankingModule(L.LightningModule, ABC):
    """Something that is trained and ranks the catalogue: a stage of a policy, or a baseline.

    Args:
        validation: rows that validation ranks.
        metrics: computed from the rankings; logged under `val/`.
        evaluation: how validation ranks; it does without `exact`.
        kind: which ranking is logged, `raw` or `excluded`.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        folder: where a batch that gave a non-finite loss or gradient is saved.
    """

    max_steps: int
    """Optimiser steps of the whole training."""

    def __init__(
        self,
        validation: EvaluationBatches,
        metrics: RankingMetrics,
        evaluation: EvaluateConfig,
        kind: str,
        max_grad_norm: float,
        folder: Path,
    ) -> None:
        super().__init__()
        self.validation = validation
        self.metrics = metrics
        self.evaluation = replace(evaluation, exact=False)
        self.kind = kind
        self.max_grad_norm = max_grad_norm
        self.folder = folder
        self._batch: Any = None  # the latest of training

    @abstractmethod
    def rank(self, batch: Requests) -> Ranking:
        """Rank the catalogue for validation rows."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What is kept of the trained model, on the CPU."""

    @property
    def decays(self) -> Mapping[str, float]:
        """Weight decay of single matrices, by name, beside that of all."""
        return {}

    def metadata(self) -> dict[str, str]:
        """What is written into the header of the weights besides them."""
        return {}

    updates: int = 1
    """Optimiser steps between places from which training can go on."""

    def val_dataloader(self) -> EvaluationBatches:
        return self.validation.share(self.global_rank, self.trainer.world_size)

    def on_train_batch_start(self, batch: Any, index: int) -> None:  # noqa: ANN401 (any frozen batch)
        """Hold the batch, in case its gradient turns out to be no number."""
        self._batch = batch

    def on_validation_epoch_start(self) -> None:
        """Forget earlier rankings.

        Raises:
            NonFiniteError: if a weight is NaN or infinite; nothing is ranked or written with such weights.
        """
        for name, value in self.trainable().items():
            if not bool(torch.isfinite(gathered(value)).all()):
                raise NonFiniteError(
                    f"step {self.global_step}: weights of {name} are NaN or infinite. Nothing was written with them. "
                    f"{REMEDY}"
                )
        self.metrics.reset()

    def validation_step(self, batch: Requests, index: int) -> None:
        self.metrics.update(self.rank(batch), batch.wanted)

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": float(value) for name, value in self.metrics.compute().items()}
        self.log_dict(values, sync_dist=False)

    def optimiser(
        self, learning_rate: float, weight_decay: float, betas: Sequence[float], matrices: Collection[str] = ()
    ) -> torch.optim.Optimizer:
        """AdamW, or Muon for the parameters named `matrices`; matrices decay, vectors (norms, biases) do not."""
        trained, more = self.trainable(), self.decays
        own = sorted({rate for name, rate in more.items() if rate})
        kinds = {name: (p.dim() > 1, more.get(name, 0.0)) for name, p in trained.items()}
        groups = [
            {"params": [trained[name] for name in trained if kinds[name] == (matrix, rate)], "weight_decay": decay}
            for matrix, rate, decay in (
                (True, 0.0, weight_decay),
                (False, 0.0, 0.0),
                *((True, rate, weight_decay + rate) for rate in own),
            )
        ]
        ids = {id(trained[name]) for name in matrices}
        return make_optimiser([g for g in groups if g["params"]], ids, lr=learning_rate, betas=(betas[0], betas[1]))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and log the norm before clipping.

        Raises:
            NonFiniteError: if the norm is NaN or infinite, before the step is made; the batch is saved.
        """
        gradients = {name: value.grad for name, value in self.trainable().items() if value.grad is not None}
        norm = gathered(nn.utils.get_total_norm(list(gradients.values())))
        if not bool(torch.isfinite(norm)):
            wholes = ((name, gathered(value)) for name, value in gradients.items())
            name = next((name for name, value in wholes if not bool(torch.isfinite(value).all())), None)
            where = "though all its values are finite" if name is None else f"from {name} on"
            self.stop(f"norm of the gradient is {float(norm)}, {where}", self._batch)
        nn.utils.clip_grads_with_norm_(self.trainable().values(), self.max_grad_norm or math.inf, norm)
        self.log("train/grad_norm", norm)

    def check_finite(self, value: Tensor, batch: Any, what: str = "loss") -> None:  # noqa: ANN401 (any frozen batch)
        """Stop on a NaN or infinite loss (or other value), see `stop`."""
        total = value.detach().sum()
        if not bool(torch.isfinite(total)):
            self.stop(f"{what} is {float(total)}", batch)

    def stop(self, what: str, batch: Any) -> NoReturn:  # noqa: ANN401 (any frozen batch)
        """Save a batch for inspection and end the run with a `NonFiniteError` that names step and file."""
        path = self.folder / f"non-finite-step{self.global_step}-rank{self.global_rank}.safetensors"
        save_file({name: value.contiguous().cpu() for name, value in flatten(batch).items()}, path)
        raise NonFiniteError(f"step {self.global_step}: the {what}. The batch is saved in {path}. {REMEDY}")


class StageModule(RankingModule):
    """A stage of training around one policy, which is there once Lightning has called `configure_model`.

    Args:
        build: makes what is trained.
        layout: grammar of completions.
        ranking: arguments of `RankingModule`.
    """

    policy: TrainablePolicy

    def __init__(
        self,
        build: Callable[[], TrainablePolicy],
        layout: Layout,
        **ranking: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**ranking)
        self.build = build
        self.layout = layout
        self.strict_loading = False  # checkpoints hold trained weights only, see on_save_checkpoint
        self._whole = ExitStack()

    def configure_model(self) -> None:
        """Make the policy, once, where the strategy wants it made; Lightning calls this before each of its loops."""
        if not hasattr(self, "policy"):
            self.policy = self.build()
            if self.device_mesh is not None:
                shard(self.policy, self.device_mesh["data_parallel"])

    def trained(self) -> TrainablePolicy:
        """A whole policy for what comes after training, which loads saved weights into it."""
        return self.build().to(self.device) if sharded(self.policy) else self.policy

    def rank(self, batch: Requests) -> Ranking:
        return rankings(self.policy, self.layout, batch, self.evaluation, (self.kind,))[self.kind]

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.policy.trainable()

    def state(self) -> dict[str, Tensor]:
        return self.policy.state()

    @property
    def decays(self) -> Mapping[str, float]:
        return self.policy.decays

    def metadata(self) -> dict[str, str]:
        return {
            "decoding": json.dumps(
                decoding(self.policy, self.layout, self.validation.maker.max_history, self.evaluation)
            )
        }

    def on_fit_start(self) -> None:
        """Bring the constraint tables to the policy's device."""
        self.layout = self.layout.to(str(self.device))

    def on_validation_epoch_start(self) -> None:
        """A validation before training needs the constraint tables on the device, too."""
        self.layout = self.layout.to(str(self.device))
        super().on_validation_epoch_start()
        self._whole.enter_context(whole(self.policy))

    def on_validation_epoch_end(self) -> None:
        self._whole.close()
        super().on_validation_epoch_end()

    def numerics(self) -> AbstractContextManager[Any]:
        """Precision of passes that Lightning does not wrap: rollouts are drawn as the update will score them."""
        mixed = self.trainer.precision.endswith("-mixed")
        return self.trainer.precision_plugin.forward_context() if mixed else nullcontext()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trained weights and running statistics: the rest is rebuilt from the configuration."""
        kept = {f"policy.model.{name}" for name in self.policy.trainable()}
        checkpoint["state_dict"] = {
            name: gathered(value).cpu()
            for name, value in checkpoint["state_dict"].items()
            if name in kept or name.startswith("objective.")
        }


def flatten(batch: Any, prefix: str = "") -> dict[str, Tensor]:  # noqa: ANN401
    """All tensors of nested batches by dotted name."""
    if isinstance(batch, Tensor):
        return {prefix: batch}
    items: dict[str, Any] = {}
    if is_dataclass(batch):
        items = {field.name: getattr(batch, field.name) for field in fields(batch)}
    elif isinstance(batch, Mapping):
        items = dict(batch)
    found: dict[str, Tensor] = {}
    for name, value in items.items():
        found |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def scheduled(optimizer: torch.optim.Optimizer, schedule: Any) -> OptimizerLRScheduler:  # noqa: ANN401 (step -> factor)
    """An optimiser with a learning-rate factor per optimiser step."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(warmup: int, last: int, final: float) -> Callable[[int], float]:
    """Learning-rate factor per optimiser step: linear warm-up to 1, then a cosine to `final` at step `last`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, last - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor
