"""Memory that runs out in a rollout or an update: smaller portions, the same result, and an end in words."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.errors import MemoryShortageError, out_of_memory
from genrl.policy.rollout import rollout
from genrl.policy.score import score
from genrl.runs.session import Session
from genrl.training import portions, rl
from genrl.training.portions import Portions
from genrl.training.rl import RLModule
from tests.helpers import assert_same
from tests.runs import attach, changed, flat_weights, rl_module, train

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")


def test_portions_are_whole_groups_that_get_smaller_until_they_fit():
    portions, tried = Portions("rollout"), []

    def work(own: slice) -> int:
        tried.append(own.stop - own.start)
        if tried[-1] > 2:
            raise GPU
        return own.start

    with pytest.warns(UserWarning, match=r"out of memory in the rollout; its groups .* in [24] portions"):
        assert portions.over(7, work) == [0, 2, 4, 6]
    assert tried == [7, 4, 2, 2, 2, 1]
    assert portions.over(1, lambda own: own.stop) == [1]
    assert portions.count == 4


@pytest.mark.filterwarnings("ignore:out of memory")
def test_one_group_that_does_not_fit_ends_it_with_advice():
    def work(own: slice) -> None:
        raise CPU

    with pytest.raises(MemoryShortageError, match=r"in the update with one group at a time .*trainer.checkpointing"):
        Portions("update").over(3, work)
    with pytest.raises(ZeroDivisionError):  # another error is no lack of memory
        Portions("update").over(3, lambda own: 1 // 0)
    assert out_of_memory(GPU)
    assert out_of_memory(CPU)
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


OPTIONS = ("objective=sapo", "objective.kl_coef=0.1", "rollout.minibatches=2", "rl.validate_every=4")


def trained(session: Session, folder: Path, *options: str) -> tuple[RLModule, Tensor, dict[str, float]]:
    module = rl_module(changed(session, folder, *OPTIONS, *options), folder)
    trainer = train(module, 2)
    own = ("train/loss", "policy/kl", "train/grad_norm/step1", "train/grad_norm", "objective/dead_groups")
    logged = {name: float(trainer.callback_metrics[name]) for name in own}
    return module, flat_weights(session.policy), logged


def short(monkeypatch: pytest.MonkeyPatch, most: int, where: str, tried: list[int]) -> None:
    """A policy that runs out of memory with more than so many prompts: as it writes, scores, or in a backward pass."""

    def write(policy: object, layout: object, requests: object, *arguments: object, **options: object) -> object:
        tried.append(len(requests))
        if len(requests) > most:
            raise GPU
        return rollout(policy, layout, requests, *arguments, **options)

    def judge(policy: object, layout: object, requests: object, completions: object, *options: object) -> object:
        if not torch.is_grad_enabled():
            return score(policy, layout, requests, completions, *options)
        tried.append(len(requests))
        if where == "forward" and len(requests) > most:
            raise CPU
        found = score(policy, layout, requests, completions, *options)
        if len(requests) > most:
            found.logps.register_hook(fail)
        return found

    def fail(gradient: Tensor) -> None:
        raise GPU

    if where == "rollout":
        monkeypatch.setattr(rl, "rollout", write)
    else:
        monkeypatch.setattr(rl, "score", judge)


@pytest.mark.parametrize(("where", "micro"), [("rollout", 0), ("forward", 0), ("backward", 3), ("backward", 0)])
def test_less_memory_gives_the_same_training(session, tmp_path, monkeypatch, where, micro):
    start = session.policy.state()
    _, wanted, logged = trained(session, tmp_path, f"rollout.micro_batch={micro}")
    session.policy.load_state(start, "the beginning")
    tried: list[int] = []
    short(monkeypatch, 1 if where == "backward" else 2, where, tried)
    with pytest.warns(UserWarning, match=f"out of memory in the {'rollout' if where == 'rollout' else 'update'}"):
        module, found, again = trained(session, tmp_path, f"rollout.micro_batch={micro}")
    assert max(tried) > 2 or micro
    assert_same(found, wanted)
    for name, value in logged.items():
        assert_same(again[name], value, 1e-5)
    counts = {"rollout": [4, 1], "forward": [1, 2], "backward": [1, 2 if micro else 4]}[where]
    checkpoint: dict[str, object] = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["portions"] == counts
    other = rl_module(changed(session, tmp_path, *OPTIONS), tmp_path)
    other.on_load_checkpoint(checkpoint)
    assert [other.drawing.count, other.updating.count] == counts


def test_portions_behind_which_there_is_an_empty_micro_batch_count_once(session, tmp_path):
    start, found = session.policy.state(), []
    options = ("objective=grpo", "objective.kl_coef=0", "rollout.micro_batch=1", "rl.validate_every=4")
    for count in (1, 2):
        session.policy.load_state(start, "the beginning")
        module = rl_module(changed(session, tmp_path, *options), tmp_path)
        module.updating.count = count  # as in a stage that has run out of memory before
        trainer = train(module, 2)
        assert float(trainer.callback_metrics["objective/dead_groups"]) > 0
        found.append(flat_weights(session.policy))
    assert_same(found[1], found[0])


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("where", ["rollout", "backward"])
def test_a_single_group_too_many_ends_training_in_words(session, tmp_path, monkeypatch, where):
    before = flat_weights(session.policy)
    short(monkeypatch, 0, where, [])
    with pytest.raises(MemoryShortageError, match="with one group at a time"):
        trained(session, tmp_path)
    assert torch.equal(flat_weights(session.policy), before)


def test_several_processes_do_not_split_an_update_on_their_own(session, tmp_path, monkeypatch):
    module = attach(rl_module(changed(session, tmp_path, *OPTIONS), tmp_path))
    part = next(iter(module.train_dataloader()))
    short(monkeypatch, 1, "forward", [])
    monkeypatch.setattr(portions, "world_size", lambda: 2)
    with pytest.raises(MemoryShortageError, match=r"several processes .*Set rollout.micro_batch to fewer prompts"):
        module.training_step(part, 0)
