"""Baselines: one LightningModule trains any recommender; all of them leave the same run folder as an objective."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor, nn

from genrl.batches import Ranking, Requests
from genrl.catalog.dataset import Dataset, load_dataset
from genrl.config.load import run_folder
from genrl.config.schema import RunConfig
from genrl.errors import DataError, UnsupportedError
from genrl.metrics.functional import exclude_history
from genrl.metrics.ranking import needed_width
from genrl.ops import world_rank, world_size
from genrl.prompts.histories import SequenceBatch, SequenceBatches
from genrl.prompts.prompts import EvaluationBatches, PromptMaker, PromptTemplate
from genrl.recommenders import BASELINES, Problem, Ranker, Recommender
from genrl.recommenders.policy import deniable
from genrl.sid.table import SidTable
from genrl.runs import tables as report
from genrl.training.board import write_outcome
from genrl.training.callbacks import BestWeights
from genrl.runs.folder import claim, is_finished, show_finished
from genrl.runs.evaluate import (
    SPLITS,
    Evaluation,
    evaluate_rankings,
    evaluated_rows,
    ranking_metrics,
)
from genrl.training.fitting import check_accelerator, find_rank, is_first, monitor, quiet_libraries, train
from genrl.files import Meter, locked, read_json, read_weights, write_json
from genrl.runs.record import references, save_ranks, written
from genrl.runs.session import equip, numerics, sid_table
from genrl.training.stage import RankingModule, scheduled, warmup_cosine
from genrl.ops import seed_of
from genrl.training.stream import StepStream


class BaselineModule(RankingModule):
    """Trains a recommender on item sequences.

    Args:
        recommender: what is trained; its options say how.
        batches: its training rows.
        seed: of dropout and negatives; the order of rows has that of `batches`.
        width: items that validation ranks for each row.
        ranking: arguments of `RankingModule`.
    """

    def __init__(
        self,
        recommender: Recommender,
        batches: SequenceBatches,
        seed: int,
        width: int,
        **ranking: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**ranking)
        self.strict_loading = False  # the recommender loads its own weights, see on_load_checkpoint
        self.recommender = recommender
        self.batches = batches
        self.seed = seed
        self.width = width
        self.config = recommender.config
        self.max_steps = batches.steps_per_epoch * self.config.max_epochs
        self.round_steps = max(1, round(batches.steps_per_epoch * self.config.validate_every))

    def train_dataloader(self) -> StepStream[SequenceBatch]:
        """The next round of steps."""
        self.batches.rank, self.batches.world = self.global_rank, self.trainer.world_size
        return StepStream(self._batches, lambda: self.global_step, self.round_steps, self.max_steps)

    def _batches(self, step: int) -> Iterator[SequenceBatch]:
        torch.manual_seed(seed_of(self.seed, step, self.global_rank))  # dropout and negatives of this step
        yield self.batches.step(step)

    def training_step(self, batch: SequenceBatch, index: int) -> Tensor:
        """Mean loss of the targets of the step, over all ranks."""
        self.recommender.train()
        loss = self.recommender.loss(batch) * self.trainer.world_size / batch.share
        self.check_finite(loss, batch)
        self.log("train/loss", loss.detach(), sync_dist=self.trainer.world_size > 1)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def rank(self, batch: Requests) -> Ranking:
        """Rank the catalogue for validation rows."""
        return self.recommender.rank(batch.history, self.width)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Those of the recommender."""
        return self.recommender.trained()

    def state(self) -> dict[str, Tensor]:
        """That of the recommender."""
        return self.recommender.state()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is saved of the recommender: the rest is rebuilt from the configuration."""
        checkpoint["state_dict"] = {f"recommender.{name}": value for name, value in self.recommender.state().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the recommender take its own."""
        prefix = len("recommender.")
        state = {name[prefix:]: value for name, value in checkpoint.pop("state_dict").items()}
        self.recommender.load_state(state, "the last checkpoint")
        checkpoint["state_dict"] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, cosine to the last step."""
        config = self.config
        factor = warmup_cosine(config.warmup_steps, self.max_steps, config.final_learning_rate)
        return scheduled(self.optimiser(config.learning_rate, config.weight_decay, (0.9, 0.999)), factor)


@dataclass(frozen=True)
class BaselineSession:
    """What a baseline's run works with."""

    config: RunConfig
    dataset: Dataset
    table: SidTable
    model: Ranker | Recommender
    maker: PromptMaker

    @classmethod
    def build(cls, config: RunConfig) -> BaselineSession:
        """Load the data, get the SID table (built once per experiment) and make the baseline, not yet trained."""
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        dataset = load_dataset(config.data)
        table = sid_table(config, dataset)
        options = {name: value for name, value in config.baseline.items() if name != "name"}
        torch.manual_seed(seed_of(config.seed))
        model = BASELINES.build(config.baseline["name"], options, problem=Problem(dataset, table, config.model))
        if isinstance(model, Recommender) and model.backbone is not None:
            equip(model.backbone, config.trainer)
        unread = PromptTemplate(start_id=0, prefix_ids=(), sid_tokens=table.codes, pad_id=0)
        return cls(config, dataset, table, model, PromptMaker(dataset, unread, config.data.max_history))

    @property
    def recommender(self) -> Recommender | None:
        """The baseline if it is one that learns."""
        return self.model if isinstance(self.model, Recommender) else None

    @property
    def device(self) -> torch.device:
        """Where rankings are made."""
        return torch.device("cpu") if self.recommender is None else next(self.recommender.parameters()).device

    @property
    def width(self) -> int:
        """Items that a ranking must list to be scored."""
        config = self.config.evaluate
        return needed_width(config.k, self.table.codes if config.level == "sid" else None)

    def numerics(self) -> contextlib.AbstractContextManager[Any]:
        """Precision of passes outside Lightning's loops."""
        return numerics(self.config.trainer, self.device)

    def batches(self, split: str) -> EvaluationBatches:
        """The rows of a split that tables are about."""
        rows = evaluated_rows(self.dataset, self.config.evaluate, split)
        return EvaluationBatches(self.maker, rows, self.config.evaluate.batch)

    def rankings(self, histories: Tensor, width: int) -> Mapping[str, Ranking]:
        """Rankings of the whole catalogue, `raw` and with each user's history `excluded`.

        Args:
            histories: [P, H], right-aligned, -1 pads.
            width: items per row.
        """
        if not isinstance(self.model, Recommender):
            every = self.model(histories, width + histories.shape[1])
            return {"raw": every, "excluded": exclude_history(every, histories)}
        unseen = self.model.rank(histories, width, deniable(histories, len(self.dataset.catalog)))
        return {"raw": self.model.rank(histories, width), "excluded": exclude_history(unseen, histories)}

    @torch.no_grad()
    def recommend(self, seen: Tensor, allowed: Tensor, top: int, exclude_seen: bool, exact: bool = False) -> Ranking:
        """The best items for histories.

        Args:
            seen: histories [P, H], right-aligned, -1 pads.
            allowed: bool [I], items that may be recommended.
            top: items per history.
            exclude_seen: leave out the items of the history.
            exact: the list must be the best of all allowed items.

        Raises:
            DataError: if no item is allowed.
            UnsupportedError: if the list must be exact and the baseline searches with a beam.
        """
        if exact and self.recommender is not None and not self.recommender.exact:
            raise UnsupportedError(
                f"{self.config.baseline['name']} searches with a beam, which cannot tell whether its list is exact. "
                f"Leave --exact out; a wider beam (baseline.beam of its config.yaml) misses less."
            )
        if not bool(allowed.any()):
            raise DataError("no item may be recommended: none of the catalogue is left. Allow more items.")
        if isinstance(self.model, Recommender):
            denied = torch.nonzero(~allowed).flatten().expand(len(seen), -1)
            with self.numerics():
                return self.model.rank(seen, top, torch.cat([seen, denied], dim=1) if exclude_seen else denied)
        every = self.model(seen, len(allowed))
        every = exclude_history(every, seen) if exclude_seen else every
        kept = allowed[every.items.clamp(min=0)] & (every.items >= 0)
        first = (~kept).to(torch.int8).sort(dim=1, stable=True).indices
        return Ranking(
            every.items.masked_fill(~kept, -1).gather(1, first),
            every.scores.masked_fill(~kept, -math.inf).gather(1, first),
        )

    def evaluate(self, splits: tuple[str, ...] = tuple(SPLITS)) -> dict[str, Evaluation]:
        """Metrics on the rows of each split."""
        config = self.config
        if self.recommender is not None:
            self.recommender.eval()
        find = partial(_rankings, self, self.width)
        with self.numerics():
            return {
                split: evaluate_rankings(
                    find,
                    self.batches(split).share(world_rank(), world_size()),
                    config.evaluate,
                    self.dataset.catalog,
                    self.table.codes.to(self.device),
                    self.device,
                    f"{config.baseline['name']} {split}",
                )
                for split in splits
            }


def _rankings(session: BaselineSession, width: int, batch: Requests) -> Mapping[str, Ranking]:
    return session.rankings(batch.history, width)


def fit_baseline(config: RunConfig, *, resume: bool = False, command: str = "") -> Path:
    """Train (where there is something to train) and score the configured baseline.

    Args:
        config: a checked configuration with `stages: [baseline]`.
        resume: go on with an unfinished run of the same configuration.
        command: how the run was started, kept in its folder.

    Returns:
        The run folder.

    Raises:
        ConfigError: if the folder holds another configuration, or an unfinished run and `resume` is not set.
    """
    quiet_libraries()
    check_accelerator(config.trainer)
    find_rank(config.trainer)
    console = Console(quiet=not is_first())
    folder = run_folder(config)
    if is_finished(folder, config, resume):
        return show_finished(folder, console)
    session = BaselineSession.build(config)
    _header(console, session)
    with locked(folder) if is_first() else contextlib.nullcontext():
        if is_finished(folder, config, resume):  # by another process, while this one waited
            return show_finished(folder, console)
        if is_first():
            claim(folder, config, command)
        lines = {split: references(config, session.dataset, session.table.codes, split) for split in SPLITS}
        meter = Meter()
        best_step = 0 if session.recommender is None else _train(session, session.recommender, folder)
        cost = meter.read()
        scored = session.evaluate()
        if is_first():
            save_ranks(folder, scored, session.dataset, config.evaluate)
            stage = {**cost, "best_step": best_step, "folder": str(folder)}
            _finish(session, folder, stage, {s: {**lines[s], "baseline": written(scored[s])} for s in SPLITS}, command)
            report.show(console, read_json(folder / "metrics.json"))
            report.places(console, {"run folder": folder})
    return folder


def load_baseline(folder: Path, config: RunConfig) -> BaselineSession:
    """Rebuild a finished run of a baseline with its trained weights.

    Raises:
        CheckpointError: if its weights are missing or damaged.
    """
    session = BaselineSession.build(config)
    if session.recommender is not None:
        weights = folder / "weights.safetensors"
        session.recommender.load_state(read_weights(weights), str(weights))
        session.recommender.eval()
    return session


def _train(session: BaselineSession, recommender: Recommender, folder: Path) -> int:
    """Train, leave the best weights in the recommender and return their step."""
    config, options = session.config, recommender.config
    batches = SequenceBatches(
        session.dataset,
        recommender.per,
        options.max_length + 1,
        options.batch,
        seed=config.seed,
    )
    module = BaselineModule(
        recommender,
        batches,
        config.seed,
        session.width,
        validation=session.batches("valid"),
        metrics=ranking_metrics(config.evaluate, session.dataset.catalog, session.table.codes),
        max_grad_norm=config.trainer.max_grad_norm,
        folder=folder,
    )
    best = BestWeights(folder / "weights.safetensors", monitor(config), options.patience)
    train(config.baseline["name"], module, folder, module.max_steps, best, config)
    recommender.load_state(read_weights(best.path), str(best.path))
    return best.best_step


def _header(console: Console, session: BaselineSession) -> None:
    config = session.config
    entry = BASELINES.entry(config.baseline["name"])
    paper = f", {entry.paper}" if entry.paper else ""
    console.print(f"[bold]{entry.title}[/] ({entry.name}{paper}), experiment {config.experiment}, seed {config.seed}")
    report.describe_data(console, session.dataset)
    if session.recommender is not None:
        trained = sum(value.numel() for value in session.recommender.trained().values())
        console.print(f"{trained:,} trained parameters", highlight=False)


def _finish(
    session: BaselineSession, folder: Path, stage: dict[str, Any], tables: dict[str, Any], command: str
) -> None:
    """Write metrics.json and the curves; a run is finished when metrics.json is there."""
    config = session.config
    entry = BASELINES.entry(config.baseline["name"])
    report.curves(folder, f"{entry.name}, seed {config.seed}")
    metrics = {
        "name": config.name or entry.name,
        "baseline": {"name": entry.name, "title": entry.title, "paper": entry.paper},
        "experiment": config.experiment,
        "seed": config.seed,
        "data": {"name": session.dataset.name, "fingerprint": session.dataset.fingerprint},
        "sid": {"levels": session.table.levels, "codes": list(session.table.codebook_sizes)},
        "command": command,
        "stages": {"baseline": stage},
        **tables,
    }
    write_outcome(folder, config, metrics)
    write_json(folder / "metrics.json", metrics)
