"""Small runs that tests of the stages, of whole runs and of the command line share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from genrl.cli.configuration import REGISTRIES
from genrl.config import RunConfig, load_config
from genrl.config.select import validating
from genrl.files import read_json
from genrl.manifest import METRICS, seal
from genrl.policy.model import Policy
from genrl.runs import tables
from genrl.runs.evaluate import ranking_metrics
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, make_verifier
from genrl.training.activate import ActivateModule
from genrl.training.rl import RLModule
from genrl.training.sft import ItemSFTModule, SFTModule
from genrl.training.stage import StageModule
from genrl.training.stream import PromptOrder
from tests.helpers import assert_same

SMALL = (
    "data.toy.world=toy",
    "data.toy.users=80",
    "data.toy.items=60",
    "data.max_history=50",
    "sid.codes=8",
    "model.hidden=16",
    "model.layers=1",
    "model.heads=2",
    "model.feed_forward=32",
    "model.vocabulary=300",
    "model.dropout=0",
    "layout=sid",
    "stages=[align,rl]",
    "align.max_epochs=2",
    "align.items_per_step=128",
    "align.learning_rate=0.01",
    "rollout.prompts=8",
    "rollout.group_size=4",
    "rl.max_steps=4",
    "rl.validate_every=2",
    "rl.learning_rate=0.001",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
)
"""Overrides of a run that takes about a second."""
QUICK = ("align.max_epochs=1", "rl.max_steps=2", "objective=grpo")
"""Further overrides of a run whose numbers do not matter."""
_curves = tables.curves


@contextmanager
def curves_drawn(drawn: bool) -> Iterator[None]:
    """Whether runs draw their curves, which takes as long as all the rest of a small one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tables, "curves", _curves if drawn else lambda *_: None)
        yield


def small(output: Path, *overrides: str) -> list[str]:
    """Overrides of a small run that writes to a folder."""
    return [*SMALL, f"output={output}", *overrides]


def small_config(output: Path, *overrides: str) -> RunConfig:
    """The checked configuration of a small run; made once for all output folders."""
    return replace(deepcopy(_composed(*overrides)), output=str(output))


@cache
def _composed(*overrides: str) -> RunConfig:
    return load_config(overrides=[*SMALL, *overrides], registries=REGISTRIES)


def resealed(folder: Path, **metrics: Any) -> Path:
    """A run that a test has changed, finished once more as it is now, with some metrics replaced."""
    seal(folder, {**read_json(folder / METRICS), **metrics})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing was written."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(folder: Path, *overrides: str) -> tuple[Session, dict[str, Tensor]]:
    """A small session, and the weights that it begins with."""
    session = Session.build(small_config(folder, *overrides))
    return session, session.policy.state()


def anew(session: Session, weights: dict[str, Tensor]) -> Session:
    """The session with the weights that it began with."""
    session.policy.load_state(weights, "the beginning")
    session.policy.zero_grad()
    session.policy.eval()
    return session


def changed(session: Session, output: Path, *overrides: str) -> Session:
    """The same data, SIDs and policy under other options."""
    return replace(session, config=small_config(output, *overrides))


def sft_module(session: Session, folder: Path) -> SFTModule:
    """The align stage of a session."""
    kind = ItemSFTModule if session.config.model.name == "item" else SFTModule
    return _made(kind(session.packer(), session.config.align, **_stage(session, folder)))


def activate_module(session: Session, folder: Path) -> ActivateModule:
    """The activate stage of a session."""
    return _made(ActivateModule(session.activate_batches(), session.config.activate, **_stage(session, folder)))


def rl_module(session: Session, folder: Path) -> RLModule:
    """The rl stage of a session."""
    config = session.config
    objective = build_objective(config)
    order = PromptOrder(session.prompt_positions(), config.rollout.prompts, config.seed)
    parts = make_verifier(session, objective), order, session.maker, session.dataset.catalog.level(objective.category)
    return _made(RLModule(objective, *parts, config.rl, config.rollout, config.seed, **_stage(session, folder)))


def _made(module: Any) -> Any:
    """With its policy, for tests without a trainer; Lightning's own call then changes nothing."""
    module.configure_model()
    return module


def _stage(session: Session, folder: Path) -> dict[str, Any]:
    config = validating(session.config)
    return {
        "build": lambda: session.policy,
        "layout": session.layout,
        "validation": session.batches("valid"),
        "metrics": ranking_metrics(config, session.dataset.catalog, session.table.codes),
        "evaluation": config,
        "kind": session.config.select.ranking,
        "max_grad_norm": session.config.trainer.max_grad_norm,
        "folder": folder,
    }


def attach(module: StageModule, **values: Any) -> StageModule:
    """Give a stage what it asks of a trainer, so that its steps can be called by hand."""
    known = {"world_size": 1, "global_rank": 0, "global_step": 0, "accumulate_grad_batches": 1, "precision": "32-true"}
    rate, alone = SimpleNamespace(param_groups=[{"lr": 0.0}]), SimpleNamespace(model=None)
    module.trainer = SimpleNamespace(**{**known, "optimizers": [rate], "strategy": alone, **values})
    module.log = module.log_dict = lambda *arguments, **options: None
    return module


def train(
    module: StageModule,
    steps: int,
    *callbacks: L.Callback,
    start: Path | None = None,
    precision: Any = "32-true",
    strategy: Any = "auto",
) -> L.Trainer:
    """Run a stage under Lightning up to an optimiser step, from a checkpoint if one is given."""
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        strategy=strategy,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    if isinstance(module, RLModule) and module.rollouts.micro_batch:
        share = module.rollouts.prompts // module.rollouts.minibatches
        trainer.accumulate_grad_batches = -(-share // module.rollouts.micro_batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, ckpt_path=start, weights_only=True)
    return trainer


def flat_gradient(policy: Policy) -> Tensor:
    """All gradients in one vector; zeros where there is none."""
    trained = policy.trainable().values()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def flat_weights(policy: Policy) -> Tensor:
    """A copy of all trained weights in one vector."""
    return torch.cat([p.detach().flatten() for p in policy.trainable().values()])


def one_step(module: StageModule) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the next optimiser step of an attached module."""
    module.policy.zero_grad()
    loss = module.training_step(next(iter(module.train_dataloader())), 0)
    loss.backward()
    return loss.detach(), flat_gradient(module.policy)


def assert_step(policy: Policy, found: tuple[Tensor, Tensor], wanted: Tensor) -> None:
    """Fail unless a step had this loss and its gradient."""
    policy.zero_grad()
    wanted.backward()
    assert_same(found[0], wanted)
    assert_same(found[1], flat_gradient(policy))


def learning_rates(module: StageModule, steps: int) -> list[float]:
    """Those of the first steps."""
    options: Any = module.configure_optimizers()
    rates = []
    for _ in range(steps):
        rates.append(options["optimizer"].param_groups[0]["lr"])
        options["optimizer"].step()
        options["lr_scheduler"]["scheduler"].step()
    return rates
