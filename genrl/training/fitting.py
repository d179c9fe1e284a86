"""One Lightning run over a stage or a baseline, and what processes of a run have to agree on."""

import logging
import pickle
import signal
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from genrl.config.schema import RunConfig, TrainerConfig
from genrl.config.select import selected
from genrl.errors import CheckpointError, ConfigError
from genrl.policy.load import require_bitsandbytes
from genrl.stopping import ask, handled, patient
from genrl.training.callbacks import BestWeights, History, StageProgress, StopPoint
from genrl.training.checkpoints import Checkpoints, ResumePoint, latest
from genrl.training.muon import PAGED
from genrl.training.peers import Peers
from genrl.training.rl import RLModule, micro_batches
from genrl.training.stage import RankingModule
from genrl.training.strategies import strategy_of


class RunLogger(TensorBoardLogger):
    """Lightning's logger without `epoch`: it counts rounds here, and would come first in the HParams tab."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics as scalars."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def check_installed(config: RunConfig) -> None:
    """Refuse a GPU that is not there and a library that is not installed, before anything is built.

    Raises:
        ConfigError: for the GPU, with what to use instead.
        UnsupportedError: for the library, with how to install it.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu, but PyTorch finds no GPU here. Use trainer.accelerator=auto or cpu, or install a "
            "build of PyTorch for your GPU."
        )
    for stage in config.stages:
        kind = getattr(getattr(config, stage), "optimizer", "") if stage != "baseline" else ""
        if kind in PAGED:
            require_bitsandbytes(f"{stage}.optimizer", kind, "adamw")
    if config.model.quantize == "nf4":
        require_bitsandbytes("model.quantize", "nf4", "none")


def make_trainer(config: TrainerConfig, **options: Any) -> L.Trainer:  # noqa: ANN401 (arguments of the trainer)
    """A trainer on the hardware of a configuration, without what genrl does itself.

    Weights in bfloat16 are the models' own affair: Lightning would round rewards and log-probabilities, too.

    Raises:
        ConfigError: if Lightning refuses an argument of `trainer.extra`.
    """
    arguments: dict[str, Any] = {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "strategy": strategy_of(config),
        "precision": "32-true" if config.precision == "bf16-true" else config.precision,
        "max_epochs": -1,
        "logger": False,
        "log_every_n_steps": config.log_every,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        **options,
    }
    plugins = config.extra.get("plugins", [])
    own = {"plugins": [Checkpoints(), *(plugins if isinstance(plugins, list) else [plugins])]}
    try:
        return L.Trainer(**{**arguments, **config.extra, **own})
    except Exception as error:  # whatever Lightning makes of arguments that are not its own
        if not config.extra:
            raise
        raise ConfigError(f"trainer.extra = {config.extra!r} does not fit lightning.Trainer: {error}") from error


def find_rank(config: TrainerConfig) -> None:
    """Have Lightning find out which process this is, so that `is_first` is right before there is a trainer to train."""
    rank_zero_only.rank = make_trainer(config).global_rank  # type: ignore[attr-defined]


def is_first() -> bool:
    """Whether this is the one process of the run that writes files: global rank 0, as Lightning counts."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def train(
    name: str,
    module: RankingModule,
    folder: Path,
    best: BestWeights,
    config: RunConfig,
    *callbacks: L.Callback,
    start: bool = False,
) -> None:
    """One Lightning run over a stage, from its last checkpoint if there is one.

    With `start` the untrained stage is validated too, so that "best" can be the weights it began with.

    Raises:
        Stopped: if a signal arrived; what was trained until then is in the checkpoint.
    """
    with handled(), patient():
        try:
            _train(name, module, folder, best, config, *callbacks, start=start)
        except SIGTERMException:  # the signal came while Lightning's handler was in place of ours
            ask(signal.SIGTERM)


def _train(
    name: str,
    module: RankingModule,
    folder: Path,
    best: BestWeights,
    config: RunConfig,
    *callbacks: L.Callback,
    start: bool,
) -> None:
    settings, max_steps = config.trainer, module.max_steps
    point = latest(folder)
    trainer = make_trainer(
        settings,
        max_steps=max_steps,
        logger=RunLogger(folder.parent, name="", version=folder.name, default_hp_metric=False),
        callbacks=[
            best,
            StageProgress(name, max_steps, monitor(config)),
            History(folder / "history.jsonl", settings.log_every),
            *callbacks,
            StopPoint(settings.checkpoint_steps, settings.checkpoint_minutes),
            ResumePoint(folder),
            Peers(),
        ],
        default_root_dir=folder,  # Lightning looks there for what a scheduler's signal had it write
    )
    if isinstance(module, RLModule):
        trainer.accumulate_grad_batches = micro_batches(config.rollout, trainer.world_size)
        if trainer.is_global_zero:
            trainer.logger.experiment.add_text("objective", f"```\n{module.objective!r}\n```")  # type: ignore[union-attr]
            trainer.logger.experiment.add_text("config", f"```yaml\n{OmegaConf.to_yaml(asdict(config))}\n```")  # type: ignore[union-attr]
    if point is not None:
        try:
            trainer.fit(module, ckpt_path=point, weights_only=True)
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, KeyError) as error:
            if module.global_step:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{point} is of another model or version ({reason}). Remove it to start the stage again."
            ) from error
    else:
        if trainer.is_global_zero:
            for name in ("history.jsonl", "samples.jsonl"):
                (folder / name).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        if start:
            trainer.validate(module, verbose=False)
        trainer.fit(module)
    module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU, where scoring it would take hours


def monitor(config: RunConfig) -> str:
    """Name of the logged validation metric that chooses weights."""
    return f"val/{selected(config)}"


def barrier() -> None:
    """Wait for the other processes of the run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def quiet_libraries() -> None:
    """Silence messages of libraries that a user of genrl can do nothing about."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*`IterableDataset`.*",
        ".*Trying to infer the `batch_size`.*",
        ".*litlogger.*",
        ".*isinstance.treespec.*",
        ".*module.s. in eval mode.*",
        ".*across ranks is zero.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", message=message)
