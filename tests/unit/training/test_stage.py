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

from genrl.batches import Targets
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
from genrl.training.stage import StageModule, flatten, scheduled
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
    module.log = lambda name, value, **options: logged.update({name: float(value)})
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training_and_leaves_its_batch(
    session: Session, tmp_path: Path, value: float
) -> None:
    module = attach(sft_module(session, tmp_path), global_step=3)
    batch = next(iter(module.train_dataloader()))
    loss = torch.tensor(value, requires_grad=True)
    with pytest.raises(NonFiniteError, match=rf"step 3: the loss is {value}. The batch is saved in .*learning rate"):
        module.check_finite(loss, batch)
    saved = load_file(tmp_path / "non-finite-step3-rank0.safetensors")
    assert set(saved) == set(flatten(batch))
    assert torch.equal(saved["tokens"], batch.tokens)
    module.check_finite(torch.tensor(0.0), batch)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["align", "rl"])
def test_a_gradient_that_is_no_number_stops_training_before_the_step(
    session: Session, tmp_path: Path, kind: str, value: float
) -> None:
    module = sft_module(session, tmp_path) if kind == "align" else rl_module(session, tmp_path)
    before = session.policy.state()
    name, parameter = list(session.policy.trainable().items())[-1]
    spoiled = parameter.register_hook(lambda gradient: gradient * value)  # the loss itself is finite
    message = rf"step 0: the norm of the gradient is (nan|inf), from {name} on. The batch is saved in .*learning rate"
    try:
        with pytest.raises(NonFiniteError, match=message):
            train(module, 2, BestWeights(tmp_path / "weights.safetensors", None), ResumePoint(tmp_path))
    finally:
        spoiled.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["non-finite-step0-rank0.safetensors"]
    assert any(key.endswith("tokens") for key in load_file(tmp_path / "non-finite-step0-rank0.safetensors"))
    assert all(torch.equal(after, before[key]) for key, after in session.policy.state().items())


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


def test_nested_batches_are_flattened_by_dotted_name(session: Session) -> None:
    batch = session.maker.at(session.dataset.sequences.rows(Role.TEST)[:3])
    found = flatten(batch)
    assert set(found) == {"tokens", "mask", "targets.items", "targets.tied", "history"}
    assert torch.equal(found["targets.items"], batch.targets.items)
    nested = flatten({"a": {"b": torch.ones(1)}, "c": None, "d": Targets(torch.zeros(1, 1, dtype=torch.int64)), "e": 3})
    assert set(nested) == {"a.b", "d.items"}


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


def test_validation_thinks_as_evaluation_does(thinking: Session, tmp_path: Path) -> None:
    config = replace(thinking.config.evaluate, thinking_samples=2, exact=True)
    module = StageModule(
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
