"""What everything that is trained shares: validation by full-catalogue ranking, the optimiser, checkpoints."""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from genrl.batches import Ranking, Requests, concatenate
from genrl.config.schema import EvaluateConfig
from genrl.errors import NonFiniteError
from genrl.layouts.base import Layout
from genrl.metrics.ranking import RankingMetrics
from genrl.ops import world_size, world_sum
from genrl.policy.base import TrainablePolicy
from genrl.policy.sharding import gathered, shard, sharded, whole
from genrl.prompts.template import EvaluationBatches
from genrl.recommenders.policy import decoding
from genrl.recommenders.searching import rankings
from genrl.training.journal import Journal, Value
from genrl.training.muon import make_optimiser
from genrl.training.portions import Update, ranking_portions
from genrl.training.skips import Skips, save_batch

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
        max_skipped: so many steps in a row with a non-finite loss or gradient end the training.
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
        max_skipped: int = 5,
    ) -> None:
        super().__init__()
        self.validation = validation
        self.metrics = metrics
        self.evaluation = replace(evaluation, exact=False)
        self.kind = kind
        self.max_grad_norm = max_grad_norm
        self.folder = folder
        self.skips = Skips(max_skipped)
        self.ranking = ranking_portions()
        self.divided = [self.ranking]
        """What goes through the model in portions, which a resumed stage goes on with."""
        self.journal = Journal()
        self.norms: dict[str, Tensor] = {}
        """What `beside` said of the latest step, on the host."""

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

    def on_validation_epoch_start(self) -> None:
        """Forget earlier rankings.

        Raises:
            NonFiniteError: if a weight is NaN or infinite; nothing is ranked or written with such weights.
        """
        trained = self.trainable()
        flags = [torch.isfinite(gathered(value)).all() for value in trained.values()]
        finite = torch.stack(flags).tolist() if flags else []
        for name, fine in zip(trained, finite, strict=True):
            if not fine:
                raise NonFiniteError(
                    f"step {self.global_step}: weights of {name} are NaN or infinite. Nothing was written with them. "
                    f"{REMEDY}"
                )
        self.metrics.reset()

    def validation_step(self, batch: Requests, index: int) -> None:
        self.metrics.update(self.ranked(batch, self.rank), batch.wanted)

    def ranked(self, batch: Requests, rank: Callable[[Requests], Ranking]) -> Ranking:
        """Rank validation rows in portions that memory has room for."""
        parts = self.ranking.over(len(batch), lambda own: rank(batch.rows(own)))
        return reduce(concatenate, parts)

    def on_validation_epoch_end(self) -> None:
        self.note({f"val/{name}": value for name, value in self.metrics.compute().items()})

    def note(self, values: Mapping[str, Value]) -> None:
        """Log scalars that are on the host and stay there: Lightning would send numbers to the device one by one."""
        self.log_dict(
            {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}, batch_size=1
        )

    def gather(self, loss: Value) -> None:
        """Note the loss of a pass that is a whole step, of which this rank has its share times the number of ranks."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        mean = world_sum(torch.as_tensor(loss).detach()) / world_size()
        self.journal.add({"train/loss": mean, "train/learning_rate": rate})

    def prepare(self, step: int) -> None:
        """What the host can do for a step to come before the device is done with the one before."""

    def said(self) -> dict[str, float]:
        """What is logged of a step when the norm of its gradient is known."""
        return self.journal.own()

    def beside(self) -> dict[str, Tensor]:
        """Scalars of a step, the same on all ranks, that are fetched with the norm of its gradient."""
        return {}

    def optimiser(
        self,
        learning_rate: float,
        weight_decay: float,
        betas: Sequence[float],
        matrices: Collection[str] = (),
        kind: str = "adamw",
    ) -> torch.optim.Optimizer:
        """AdamW of a kind, and Muon for the parameters named `matrices`; matrices decay, vectors (norms, ..) do not."""
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
        groups = [group for group in groups if group["params"]]
        return make_optimiser(groups, ids, kind, lr=learning_rate, betas=(betas[0], betas[1]))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and log the norm before clipping.

        A step whose norm is NaN or infinite is passed over: without gradients the optimiser moves nothing and keeps
        what it remembers. Ranks agree, as they hold the same gradients.

        Raises:
            NonFiniteError: if there were too many such steps in a row; a batch is saved.
        """
        gradients = {name: value.grad for name, value in self.trainable().items() if value.grad is not None}
        norm = gathered(nn.utils.get_total_norm(list(gradients.values())))
        passes = self.skips.passes()
        beside = self.beside()
        if self.global_step + 1 < self.max_steps:
            self.prepare(self.global_step + 1)  # while the device is still at the backward pass
        known, *values = self.journal.fetch(norm, *beside.values())
        self.norms = dict(zip(beside, values, strict=True))
        if bool(known.isfinite()):
            self.skips.row = 0
            nn.utils.clip_grads_with_norm_(self.trainable().values(), self.max_grad_norm or math.inf, norm)
        else:
            self._skip(norm, gradients, passes)
        self.note({**self.said(), "train/grad_norm": known, "train/skipped_steps": float(self.skips.total)})

    def _skip(self, norm: Tensor, gradients: Mapping[str, Tensor], passes: Sequence[tuple[Any, Tensor]]) -> None:
        """Pass the step over, or end the stage if it was not the first in a row."""
        spoiled = [name for name, value in gradients.items() if not bool(torch.isfinite(gathered(value)).all())]
        wrong = [(batch, float(loss)) for batch, loss in passes if not bool(torch.isfinite(loss))]
        where = f"from {spoiled[0]} on" if spoiled else "though all its values are finite"
        what = f"loss is {wrong[0][1]}" if wrong else f"norm of the gradient is {float(norm)}, {where}"
        self.skips.total += 1
        self.skips.row += 1
        if self.skips.row >= self.skips.most:
            about = {"losses": [float(loss) for _, loss in passes], "gradients": spoiled}
            batches = wrong or passes
            self.stop(what, batches[0][0] if batches else None, about)
        if self.skips.total == 1 and self.global_rank == 0:
            warnings.warn(
                f"step {self.global_step}: the {what}. The step is skipped, as if it had not been; "
                f"train/skipped_steps counts such steps, and {self.skips.most} in a row end the stage "
                f"(trainer.max_skipped_steps).",
                stacklevel=2,
            )
        self.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps, and in how many portions things go through the model."""
        checkpoint["skipped_steps"] = self.skips.state()
        checkpoint["divided"] = {each.what: each.count for each in self.divided}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count on, and go on with as many portions."""
        self.skips.restore(checkpoint.get("skipped_steps", {}))
        for each in self.divided:
            each.count = checkpoint.get("divided", {}).get(each.what, 1)

    def check_finite(self, value: Tensor, batch: Any, what: str) -> None:  # noqa: ANN401 (any frozen batch)
        """Stop if a value that no step can be made without is NaN or infinite, see `stop`."""
        total = value.detach().sum()
        if not bool(torch.isfinite(total)):
            self.stop(f"{what} is {float(total)}", batch)

    def stop(self, what: str, batch: Any, about: Mapping[str, Any] | None = None) -> NoReturn:  # noqa: ANN401
        """Save a batch for inspection and end the run with a `NonFiniteError` that names step and file."""
        name = f"non-finite-step{self.global_step}-rank{self.global_rank}"
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        known = {"step": self.global_step, "rank": self.global_rank, "what": what, "learning_rates": rates}
        path = save_batch(self.folder, name, batch, {**known, **(about or {})})
        often = f" {self.skips.row} steps in a row were like this." if self.skips.row > 1 else ""
        raise NonFiniteError(
            f"step {self.global_step}: the {what}.{often} The batch is saved in {path}, with what is known of it in "
            f"{path.with_suffix('.json').name}. {REMEDY}"
        )


class StageModule(RankingModule):
    """A stage of training around one policy, which is there once Lightning has called `configure_model`.

    Args:
        build: makes what is trained.
        layout: grammar of completions.
        unit: what of a batch is never split where memory is short.
        hint: how to have less of it at once.
        ranking: arguments of `RankingModule`.
    """

    policy: TrainablePolicy

    def __init__(
        self,
        build: Callable[[], TrainablePolicy],
        layout: Layout,
        unit: str = "row",
        hint: str = "",
        **ranking: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**ranking)
        self.updating = Update(self, unit, hint)
        self.divided.append(self.updating)
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

    @abstractmethod
    def loss(self, part: Any) -> tuple[Tensor, dict[str, Value]]:  # noqa: ANN401 (what the stage trains on)
        """Loss of a part of a step, and what is to be logged of it; losses of its parts add up to that of a step."""

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (handed on as they are)
        """Lightning's backward pass, and what has to be done anew where memory runs out in it."""
        own = super().backward
        self.updating.backward(loss, lambda last: own(last, *arguments, **options))

    def optimizer_zero_grad(self, *arguments: Any) -> None:  # noqa: ANN401 (Lightning's)
        """Nothing: by now there may be gradients of this step, and `Update.begin` has dropped those before."""

    def forget(self) -> None:
        """Begin to watch the passes of a step anew."""
        self.skips.passes()

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
        super().on_save_checkpoint(checkpoint)
        kept = {f"policy.model.{name}" for name in self.policy.trainable()}
        checkpoint["state_dict"] = {
            name: gathered(value).cpu()
            for name, value in checkpoint["state_dict"].items()
            if name in kept or name.startswith("objective.")
        }


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
