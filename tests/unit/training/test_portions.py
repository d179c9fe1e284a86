"""Memory that runs out in a rollout or an update: smaller portions, the same result, and an end in words."""

import os
import socket
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.errors import MemoryShortageError, out_of_memory
from genrl.policy.rollout import rollout
from genrl.policy.score import score
from genrl.runs.session import Session
from genrl.training import rl
from genrl.training.fitting import make_trainer, quiet_libraries
from genrl.training.portions import Portions
from genrl.training.rl import RLModule, micro_batches
from genrl.training.sft import SupervisedModule
from tests.helpers import assert_same
from tests.runs import (
    activate_module,
    anew,
    begun,
    changed,
    flat_weights,
    rl_module,
    sft_module,
    train,
)

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"


def test_portions_are_whole_groups_that_get_smaller_until_they_fit():
    portions, tried = Portions("rollout"), []

    def work(own: slice) -> int:
        tried.append(own.stop - own.start)
        if tried[-1] > 2:
            raise torch.OutOfMemoryError(GPU)
        return own.start

    with pytest.warns(UserWarning, match=r"out of memory in the rollout; its groups .* in [24] portions"):
        assert portions.over(7, work) == [0, 2, 4, 6]
    assert tried == [7, 4, 2, 2, 2, 1]
    assert portions.over(1, lambda own: own.stop) == [1]
    assert portions.count == 4


@pytest.mark.filterwarnings("ignore:out of memory")
def test_one_group_that_does_not_fit_ends_it_with_advice():
    def work(own: slice) -> None:
        raise RuntimeError(CPU)

    with pytest.raises(MemoryShortageError, match=r"in the update with one group at a time .*trainer.checkpointing"):
        Portions("update").over(3, work)
    with pytest.raises(ZeroDivisionError):  # another error is no lack of memory
        Portions("update").over(3, lambda own: 1 // 0)
    assert out_of_memory(torch.OutOfMemoryError(GPU))
    assert out_of_memory(RuntimeError(CPU))
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
            raise torch.OutOfMemoryError(GPU)
        return rollout(policy, layout, requests, *arguments, **options)

    def judge(policy: object, layout: object, requests: object, completions: object, *options: object) -> object:
        if not torch.is_grad_enabled():
            return score(policy, layout, requests, completions, *options)
        tried.append(len(requests))
        if where == "forward" and len(requests) > most:
            raise RuntimeError(CPU)
        found = score(policy, layout, requests, completions, *options)
        if len(requests) > most:
            found.logps.register_hook(fail)
        return found

    def fail(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError(GPU)

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
    assert checkpoint["divided"] == {"ranking": 1, "rollout": counts[0], "update": counts[1]}
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


def total_with_little_memory(module: SupervisedModule, most: int, where: str, tried: list[int]) -> None:
    """A stage that runs out of memory with more than so many rows: in a forward or in a backward pass."""
    total = module.total

    def counted(batch: Any) -> Tensor:
        tried.append(len(batch))
        if len(batch) > most and where == "forward":
            raise RuntimeError(CPU)
        found = total(batch)
        if len(batch) > most:
            found.register_hook(fail)
        return found

    def fail(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError(GPU)

    module.total = counted


PACKED = ("align.items_per_step=60", "align.pack_length=30")
STAGES: dict[str, tuple[Callable[[Session, Path], SupervisedModule], tuple[str, ...]]] = {
    "align": (sft_module, ("align.text_tasks=on", *PACKED)),
    "items": (sft_module, ("model.name=item", "model.item.dropout=0", "align.learning_rate=0.0005", *PACKED)),
    "activate": (
        activate_module,
        ("layout=blocked", "layout.budget=4", "activate.pack_length=40", "activate.examples=30"),
    ),
}


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_less_memory_gives_the_same_supervised_training(tmp_path, stage, where):
    make, options = STAGES[stage]
    session, start = begun(tmp_path, *options)
    found, losses, tried = [], [], []
    for most in (1000, 1):
        anew(session, start)
        module = make(session, tmp_path)
        total_with_little_memory(module, most, where, tried)
        with nullcontext() if most == 1000 else pytest.warns(UserWarning, match="the update; its rows go through"):
            losses.append(float(train(module, 2).callback_metrics["train/loss"]))
        found.append(flat_weights(session.policy))
    assert max(tried) > 2
    assert module.updating.count > 2
    assert_same(found[1], found[0], 1e-6)
    assert_same(losses[1], losses[0], 1e-5)


def test_a_portion_of_packed_rows_has_their_targets(tmp_path):
    options = ("layout=blocked", "layout.budget=4", "activate.pack_length=40", "activate.examples=30")
    session, _ = begun(tmp_path, *options)
    batch = session.activate_batches().step(0)
    assert len(batch) > 2
    assert batch.states is not None
    kept = [batch.portion(slice(0, 2)), batch.portion(slice(2, len(batch)))]
    tokens = [torch.cat([part.tokens[tuple(part.places.T)] for part in each]) for each in ([batch], kept)]
    assert torch.equal(*(value.sort().values for value in tokens))
    assert sum(len(part.items) for part in kept) == len(batch.items)
    for part in kept:
        assert part.states is not None
        assert len(part.states.site) == len(part.places) == len(part.before)
        assert part.share == batch.share
        firsts = session.layout.plain.compose(part.items[:, None])[:, 0]
        assert torch.equal(part.tokens[tuple(part.item_places.T)], firsts)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_validation_goes_on_with_fewer_requests_at_once(session, tmp_path):
    module = sft_module(session, tmp_path)
    batch, rank, tried = next(iter(module.validation)), module.rank, []

    def little(requests: Requests) -> Ranking:
        tried.append(len(requests))
        if len(requests) > 3:
            raise torch.OutOfMemoryError(GPU)
        return rank(requests)

    wanted, found = module.ranked(batch, rank), module.ranked(batch, little)
    assert tried[0] == len(batch) > 3
    assert module.ranking.count > 1
    assert torch.equal(found.items, wanted.items)
    assert_same(found.scores, wanted.scores)


WHOLE = ("rollout.minibatches=1", "rl.learning_rate=0.0001")
"""Processes share out mini-batches of their own."""


def work(rank: int, port: int, folder: Path, session: Session, where: str, strategy: str) -> None:
    """One process of two, of which the second has little memory."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    quiet_libraries()
    warnings.simplefilter("ignore")
    options = ("trainer.devices=2", f"trainer.strategy={strategy}", f"rollout.micro_batch={3 * (where == 'micro')}")
    own = changed(session, folder, *OPTIONS, *WHOLE, *options)
    module, counted = rl_module(own, folder), micro_batches(own.config.rollout, 2)
    trainer = make_trainer(own.config.trainer, max_steps=2, limit_val_batches=0, accumulate_grad_batches=counted)
    if rank == 1 and where == "exchange":
        first = next(iter(session.policy.trainable().values()))  # its gradient comes last
        first.register_hook(fail_with_memory)
    elif rank == 1:
        short(pytest.MonkeyPatch(), 1, "forward" if where == "forward" else "backward", [])
    if strategy == "fsdp":
        del module.policy  # made and shared out by Lightning's call
    trainer.fit(module)
    assert (module.updating.count > 1) == (rank == 1)
    torch.save(flat_weights(session.policy), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def fail_with_memory(gradient: Tensor) -> None:
    raise torch.OutOfMemoryError(GPU)


def two_processes(*arguments: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(work, args=(port, *arguments), nprocs=2, start_method="fork")


@pytest.mark.parametrize("where", ["forward", "backward", "micro"])
def test_a_process_that_is_short_of_memory_makes_more_passes_than_the_other(session, tmp_path, where):
    start = session.policy.state()
    two_processes(tmp_path, session, where, "ddp")
    session.policy.load_state(start, "the beginning")
    _, wanted, _ = trained(session, tmp_path, *WHOLE)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(found[0], found[1])
    assert_same(found[0], wanted, 1e-6)


@pytest.mark.parametrize(
    ("where", "strategy", "words"),
    [
        ("exchange", "ddp", r"of process 1 of 2, in the midst of its exchange.* so all end. rollout.micro_batch sets"),
        ("forward", "fsdp", r"of process 1 of 2, whose weights are shared out \(trainer.strategy=fsdp\)"),
    ],
)
def test_a_process_that_others_wait_for_cannot_begin_anew(session, tmp_path, where, strategy, words):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=words):
        two_processes(tmp_path, session, where, strategy)
