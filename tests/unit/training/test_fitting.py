import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only as lightning_rank
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl.config.schema import EvaluateConfig, ModelConfig, RLConfig, RunConfig, SelectConfig, TrainerConfig
from genrl.errors import ConfigError, Stopped, UnsupportedError
from genrl.policy import load
from genrl.stopping import handled
from genrl.training import fitting
from genrl.training.callbacks import BestWeights
from genrl.training.fitting import (
    RunLogger,
    barrier,
    check_installed,
    find_rank,
    is_first,
    make_trainer,
    monitor,
    train,
)


def test_the_selected_metric_of_validation_is_watched():
    assert monitor(RunConfig(evaluate=EvaluateConfig(k=[20, 5]))) == "val/ndcg@20"
    assert monitor(RunConfig(select=SelectConfig(metric="recall@5"))) == "val/recall@5"


@pytest.mark.parametrize(
    ("told", "options", "rank"),
    [
        ({}, {}, 0),
        ({"LOCAL_RANK": "3", "SLURM_PROCID": "2"}, {}, 0),  # left by something else: one device is one process
        ({"NODE_RANK": "1"}, {"num_nodes": 2, "devices": 2}, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, {"num_nodes": 2, "devices": 2}, 3),
        (
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "none"},
            {"num_nodes": 2, "devices": 2},
            2,
        ),
    ],
)
def test_the_first_process_is_that_of_global_rank_0_as_lightning_counts(monkeypatch, told, options, rank):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    before = rank_zero_only.rank
    try:
        find_rank(TrainerConfig(accelerator="cpu", **options))
        assert rank_zero_only.rank == rank
        assert is_first() == (rank == 0)
    finally:
        rank_zero_only.rank = lightning_rank.rank = before


@pytest.mark.parametrize("extra", [{"profiler": "x"}, {"max_time": "soon"}, {"plugins": 3}])
def test_values_that_lightning_refuses_are_told_with_their_option(extra):
    with pytest.raises(ConfigError, match=r"trainer\.extra = \{.*\} does not fit lightning\.Trainer: ."):
        make_trainer(TrainerConfig(extra=extra))


def test_one_process_waits_for_nobody(monkeypatch):
    waited: list[bool] = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: waited.append(True))
    barrier()
    assert waited == []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    barrier()
    assert waited == [True]


def test_the_log_of_a_run_has_no_epochs(tmp_path):
    logger = RunLogger(tmp_path, name="", version="run")
    logger.log_metrics({"epoch": 1, "a": 2.0}, 3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Tags()["scalars"] == ["a"]
    assert (events.Scalars("a")[0].step, events.Scalars("a")[0].value) == (3, 2.0)


def test_what_was_trained_is_scored_where_it_was_trained(tmp_path, monkeypatch):
    class Trainer:
        def __init__(self, **options: Any) -> None:
            self.strategy = SimpleNamespace(root_device=torch.device("meta"))
            self.is_global_zero = True

        def fit(self, module: torch.nn.Module) -> None:
            module.cpu()  # as Lightning leaves it

    monkeypatch.setattr(fitting.L, "Trainer", Trainer)
    module: Any = torch.nn.Linear(2, 2)
    module.max_steps = 1
    train("stage", module, tmp_path, BestWeights(tmp_path / "best", None), RunConfig())
    assert module.weight.device.type == "meta"


def test_a_signal_that_lightning_answers_first_stops_the_run_as_any_other(tmp_path, monkeypatch):
    class Trainer(SimpleNamespace):
        def fit(self, _module):
            raise SIGTERMException

    made = Trainer(is_global_zero=False)
    monkeypatch.setattr(fitting.L, "Trainer", lambda **_: made)
    module: Any = SimpleNamespace(max_steps=1)
    with pytest.raises(Stopped) as stopped:
        train("stage", module, tmp_path, BestWeights(tmp_path / "best", None), RunConfig())
    assert stopped.value.code == 143
    with handled():  # forget that it arrived
        pass


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    for accelerator in ("auto", "cpu"):
        check_installed(RunConfig(trainer=TrainerConfig(accelerator=accelerator)))
    refused = contextlib.nullcontext() if there else pytest.raises(ConfigError, match="PyTorch finds no GPU here")
    with refused:
        check_installed(RunConfig(trainer=TrainerConfig(accelerator="gpu")))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model": ModelConfig(quantize="nf4")},
            "model.quantize=nf4 needs bitsandbytes: .* or set model.quantize=none",
        ),
        ({"rl": RLConfig(optimizer="paged_adamw_8bit")}, "rl.optimizer=paged_adamw_8bit needs .* rl.optimizer=adamw"),
    ],
)
def test_a_library_that_is_not_installed_is_named_before_anything_is_built(monkeypatch, config, says):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    check_installed(RunConfig())
    check_installed(RunConfig(stages=["baseline"]))
    with pytest.raises(UnsupportedError, match=says):
        check_installed(RunConfig(**config))
