"""The strategies by their names, and checkpoints that are the same whatever shared out the weights."""

import dataclasses

import pytest
import torch
import torch.distributed

from genrl.config.schema import TrainerConfig
from genrl.training.fitting import make_trainer
from genrl.training.strategies import Sharded, strategy_of
from tests.runs import anew, begun, sft_module


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "auto"),
        ({"devices": 2}, "ddp"),
        ({"num_nodes": 2}, "ddp"),
        ({"strategy": "ddp"}, "ddp"),
    ],
)
def test_auto_is_ddp_where_there_are_several_processes(options, named):
    assert strategy_of(TrainerConfig(**options)) == named


def test_fsdp_shares_out_over_all_nodes():
    found = strategy_of(TrainerConfig(strategy="fsdp", devices=4, num_nodes=2))
    assert isinstance(found, Sharded)
    assert (found._data_parallel_size, found._tensor_parallel_size) == (8, 1)


@pytest.fixture
def ungrouped():
    yield
    torch.distributed.destroy_process_group()


def test_a_checkpoint_of_either_strategy_goes_on_under_the_other(tmp_path, ungrouped):
    session, weights = begun(tmp_path, "stages=[align]", "align.optimizer=muon")
    settings, saved = session.config.trainer, {}
    ends: dict[str, list[torch.Tensor]] = {"auto": [], "fsdp": []}
    for strategy in ("auto", "fsdp", "auto", "fsdp"):  # to step 2, and from there by the checkpoint of the other
        module = sft_module(anew(session, weights), tmp_path)
        del module.policy
        module.build = session.learner.make
        point = saved.get({"auto": "fsdp", "fsdp": "auto"}[strategy]) if len(saved) == 2 else None
        trainer = make_trainer(dataclasses.replace(settings, strategy=strategy), max_steps=2 if point is None else 3)
        trainer.fit(module, ckpt_path=point, weights_only=True)
        assert trainer.global_step == trainer.max_steps
        path = tmp_path / f"{strategy}-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        saved.setdefault(strategy, path)
        ends[strategy].append(torch.cat([value.flatten() for value in module.state().values()]))
    contents = [torch.load(path, weights_only=True) for path in saved.values()]
    assert {name: value.shape for name, value in contents[0]["state_dict"].items()} == {
        name: value.shape for name, value in contents[1]["state_dict"].items()
    }
    assert all(type(value) is torch.Tensor for content in contents for value in content["state_dict"].values())
    for step in range(2):
        assert torch.equal(ends["auto"][step], ends["fsdp"][step])
    assert not torch.equal(ends["auto"][0], ends["auto"][1])
