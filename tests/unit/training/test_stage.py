from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genrl.catalog.sequences import Role
from genrl.config.select import validating
from genrl.errors import NonFiniteError
from genrl.files import save_weights
from genrl.policy.model import Policy
from genrl.recommenders.searching import rankings
from genrl.runs.evaluate import evaluate
from genrl.runs.session import Session
from genrl.runs.stage import _rl, build_objective
from genrl.training.callbacks import BestWeights
from genrl.training.checkpoints import ResumePoint
from genrl.training.journal import Value
from genrl.training.skips import Skips
from genrl.training.stage import StageModule, scheduled
from tests.helpers import assert_same
from tests.models import shut
from tests.runs import attach, changed, flat_gradient, rl_module, sft_module, small_config, train


@pytest.mark.parametrize("kind", ["excluded", "raw"])
def test_validation_logs_what_evaluation_finds(session: Session, tmp_path: Path, kind: str) -> None:
    options = ("align.max_epochs=1", f"select.ranking={kind}", "select.metric=mrr@7")
    session = changed(session, tmp_path, *options)
    trainer = train(sft_module(session, tmp_path), 100)
    config = validating(session.config)
    assert config.k == [1, 5, 7, 10, 20]
    rows = session.batches("valid")
    found = getattr(evaluate(session.recommender, rows, config, "valid"), kind)
    logged = {name[4:]: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(logged) == {name for name in found if not name.startswith(("history_share", "certified", "short"))}
    for name, value in logged.items():
        assert_same(torch.tensor(value), torch.tensor(found[name]).float()), name


def test_gradients_are_scaled_down_to_the_norm_and_never_up(session: Session, tmp_path: Path) -> None:
    module = attach(sft_module(session, tmp_path))
    logged: dict[str, float] = {}
    module.log_dict = lambda values, **options: logged.update({name: float(value) for name, value in values.items()})
    batch = next(iter(module.train_dataloader()))
    for limit in (0.01, 0.0, 1e6):
        session.policy.zero_grad()
        module.training_step(batch, 0).backward()
        whole = flat_gradient(session.policy)
        module.max_grad_norm = limit
        module.configure_gradient_clipping(None)  # type: ignore[arg-type]
        assert_same(torch.tensor(logged["train/grad_norm"]), whole.norm())
        wanted = whole * 0.01 / whole.norm() if limit == 0.01 else whole
        assert_same(flat_gradient(session.policy), wanted)


class Spoil(L.Callback):
    """Makes the gradient of some steps NaN or infinite; notes weights and the optimiser's memory behind each step."""

    def __init__(self, session: Session, value: float, *steps: int) -> None:
        self.session, self.value, self.steps = session, value, steps
        self.weights: list[dict[str, Tensor]] = []
        self.memory: list[list[Tensor]] = []
        self.counts: list[float] = []

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            list(self.session.policy.trainable().values())[-1].grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: object) -> None:
        self.weights.append(self.session.policy.state())
        parts = getattr(trainer.optimizers[0], "parts", trainer.optimizers)
        own = [value for part in parts for state in part.state.values() for value in state.values()]
        self.memory.append([torch.as_tensor(value).clone() for value in own])
        self.counts.append(float(trainer.callback_metrics["train/skipped_steps"]))


@pytest.mark.parametrize("kind", ["align", "muon", "rl"])
def test_a_step_without_a_finite_gradient_leaves_no_trace_but_its_count(
    session: Session, tmp_path: Path, kind: str
) -> None:
    options = ("align.optimizer=muon",) if kind == "muon" else ()
    make = rl_module if kind == "rl" else sft_module
    module = make(changed(session, tmp_path, "objective=grpo", *options), tmp_path)
    name = list(session.policy.trainable())[-1]
    spoil = Spoil(session, float("nan"), 1)
    with pytest.warns(UserWarning, match=rf"step 1: the norm of the gradient is nan, from {name} on\. The step is "):
        train(module, 3, spoil)
    assert spoil.counts == [0, 1, 1]
    assert spoil.memory[0]
    assert all(torch.equal(after, before) for after, before in zip(spoil.memory[1], spoil.memory[0], strict=True))
    assert all(torch.equal(value, spoil.weights[0][key]) for key, value in spoil.weights[1].items())
    assert any(not torch.equal(value, spoil.weights[1][key]) for key, value in spoil.weights[2].items())
    assert not list(tmp_path.iterdir())
    assert (module.skips.total, module.skips.row) == (1, 0)


@pytest.mark.filterwarnings("ignore:step 0")
@pytest.mark.parametrize(("kind", "value"), [("align", float("nan")), ("rl", float("inf"))])
def test_so_many_skipped_steps_in_a_row_end_the_stage_and_leave_a_batch(
    session: Session, tmp_path: Path, kind: str, value: float
) -> None:
    module = sft_module(session, tmp_path) if kind == "align" else rl_module(session, tmp_path)
    module.skips = Skips(2)
    message = (
        r"step 3: the norm of the gradient is (nan|inf), from .* on\. 2 steps in a row were like this\. The batch is "
        r"saved in .*non-finite-step3-rank0\.safetensors, with .* in non-finite-step3-rank0\.json\. .*learning rate"
    )
    spoil = Spoil(session, value, 0, 2, 3)
    with pytest.raises(NonFiniteError, match=message):
        train(module, 5, spoil)
    assert spoil.counts == [1, 1, 2]
    kept = ["non-finite-step3-rank0.json", "non-finite-step3-rank0.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert any(key.endswith("tokens") for key in load_file(tmp_path / kept[1]))
    about = json.loads((tmp_path / kept[0]).read_text())
    assert about["gradients"] == list(session.policy.trainable())[-1:]
    assert about["step"] == 3
    assert len(about["learning_rates"]) >= 1


def test_skipped_steps_are_counted_over_a_resumed_stage(session: Session, tmp_path: Path) -> None:
    module = sft_module(session, tmp_path)
    module.skips.total = 3
    checkpoint: dict[str, object] = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    again = sft_module(session, tmp_path)
    again.on_load_checkpoint(checkpoint)
    assert again.skips.total == 3


def test_weights_that_are_no_numbers_are_neither_ranked_nor_written(session: Session, tmp_path: Path) -> None:
    class Overflow(L.Callback):
        """What a step can do to weights though its gradient is finite."""

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: object) -> None:
            with torch.no_grad():
                next(iter(session.policy.trainable().values())).view(-1)[3] = float("inf")

    module = sft_module(session, tmp_path)
    module.round_steps = 1
    keepers = (BestWeights(tmp_path / "weights.safetensors", None), ResumePoint(tmp_path))
    with pytest.raises(NonFiniteError, match=r"step 1: weights of .* are NaN or infinite. Nothing was written"):
        train(module, 2, Overflow(), *keepers)
    assert not list(tmp_path.iterdir())


def test_checkpoints_hold_trained_weights_and_running_statistics_only(session: Session, tmp_path: Path) -> None:
    module = rl_module(changed(session, tmp_path, "objective=sage"), tmp_path)
    name = next(iter(session.policy.trainable()))
    parameter = dict(session.policy.model.named_parameters())[name]
    parameter.requires_grad_(False)
    try:
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
    finally:
        parameter.requires_grad_(True)
    kept = set(checkpoint["state_dict"])
    statistics = {key for key in kept if key.startswith("objective.")}
    assert statistics
    wanted = {f"policy.model.{key}" for key in session.policy.trainable() if key != name}
    assert kept - statistics == wanted


def test_the_rate_follows_the_schedule_by_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    options = scheduled(optimizer, lambda step: 1 / (step + 1))
    assert options["lr_scheduler"]["interval"] == "step"  # type: ignore[index]
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        options["lr_scheduler"]["scheduler"].step()  # type: ignore[index]
    assert_same(rates, [2.0, 1.0, 2 / 3], 1e-12)


class Ranks(StageModule):
    """A stage that is not trained."""

    def loss(self, part: object) -> tuple[Tensor, dict[str, Value]]:
        raise NotImplementedError


def test_validation_thinks_as_evaluation_does(thinking: Session, tmp_path: Path) -> None:
    config = replace(thinking.config.evaluate, thinking_samples=2, exact=True)
    module = Ranks(
        lambda: thinking.policy,
        thinking.layout,
        evaluation=config,
        kind="excluded",
        validation=thinking.batches("valid"),
        metrics=None,
        max_grad_norm=0.0,
        folder=tmp_path,
    )
    module.configure_model()
    batch = thinking.maker.at(thinking.dataset.sequences.rows(Role.VALID)[:3])
    wanted = rankings(thinking.policy, thinking.layout, batch, replace(config, exact=False))["excluded"]
    assert module.rank(batch).items.tolist() == wanted.items.tolist()
    assert json.loads(module.metadata()["decoding"])["search"]["evaluate.thinking_samples"] == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_stage_makes_its_policy_once_and_where_lightning_asks_for_it(tmp_path: Path, precision: str) -> None:
    config = small_config(tmp_path, "objective=grpo", "objective.kl_coef=0.1", f"trainer.precision={precision}")
    session, weights = Session.build(config), tmp_path / "weights.safetensors"
    policy = session.learner.make()
    with torch.no_grad():
        next(iter(policy.trainable().values())).add_(0.5)
    save_weights(policy.state(), weights)
    session.learner.forget()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    for before, state in ((None, session.learner.make().state()), (weights, policy.state())):
        stage = _rl(session, build_objective(config), before)
        assert stage.module is not None
        module = stage.module()
        assert not list(module.parameters())
        torch.manual_seed(5)
        with torch.device("meta"):  # a strategy's own way to make tensors: seeded weights do not depend on it
            module.configure_model()
        assert torch.equal(torch.rand(3), wanted)
        made = module.policy
        module.configure_model()
        assert module.policy is made
        assert made.state().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in made.state().items())
        assert all(torch.equal(value.cpu(), state[name]) for name, value in module.reference.weights.items())
    assert "policy" not in vars(session.learner)


@pytest.mark.parametrize("stage", ["align", "rl"])
def test_a_step_reads_weights_inside_the_forward_pass_alone(session: Session, tmp_path: Path, stage: str) -> None:
    options = ("align.text_tasks=on", "align.items_per_step=100000", "objective=grpo", "objective.kl_coef=0.1")
    make = sft_module if stage == "align" else rl_module

    def gradient(around: Callable[[Policy], AbstractContextManager[None]]) -> Tensor:
        module = attach(make(changed(session, tmp_path, *options), tmp_path))
        session.policy.zero_grad()
        with around(session.policy):
            for index, batch in enumerate(module.train_dataloader()):
                module.training_step(batch, index).backward()
        return flat_gradient(session.policy)

    wanted = gradient(nullcontext)
    assert wanted.norm() > 0
    assert_same(gradient(shut), wanted)
