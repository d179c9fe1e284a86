"""Steps without a finite loss or gradient leave no trace but a count, on all ranks alike."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch import nn

from genrl.batches import Targets
from genrl.catalog.sequences import Role
from genrl.runs.session import Session
from genrl.training.skips import Skips, flatten, save_batch

BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_finite_loss_keeps_its_bits_and_those_of_its_gradient(dtype: torch.dtype) -> None:
    at = torch.linspace(-3, 5, 7, dtype=dtype).requires_grad_()
    loss = (at.exp() * at).sum()
    (wanted,) = torch.autograd.grad(loss, at, retain_graph=True)
    skips = Skips(5)
    watched = skips.watch(loss, "batch")
    (found,) = torch.autograd.grad(watched, at)
    assert torch.equal(watched, loss)
    assert torch.equal(found, wanted)
    ((batch, value),) = skips.passes()
    assert (batch, float(value)) == ("batch", float(loss.detach()))
    assert skips.passes() == []


@pytest.mark.parametrize("value", BAD)
def test_a_loss_that_is_no_number_spoils_its_whole_gradient(value: float) -> None:
    at = torch.ones(3, requires_grad=True)
    (found,) = torch.autograd.grad(Skips(5).watch((at * 2).sum() + value, None), at)  # whose own gradient is finite
    assert bool(found.isnan().all())


def test_counts_go_through_a_checkpoint() -> None:
    skips = Skips(5)
    skips.total, skips.row = 4, 2
    other = Skips(5)
    other.restore(skips.state())
    assert (other.total, other.row) == (4, 2)
    other.restore({})  # a checkpoint of before
    assert (other.total, other.row) == (0, 0)


def test_a_batch_is_saved_with_what_is_known_of_it(session: Session, tmp_path: Path) -> None:
    batch = session.maker.at(session.dataset.sequences.rows(Role.TEST)[:3])
    path = save_batch(tmp_path, "non-finite", batch, {"step": 3, "losses": [math.inf]})
    saved = load_file(path)
    assert set(saved) == set(flatten(batch)) == {"tokens", "mask", "targets.items", "targets.tied", "history"}
    assert torch.equal(saved["targets.items"], batch.targets.items)
    about = json.loads((tmp_path / "non-finite.json").read_text())
    assert about == {"step": 3, "losses": [math.inf], "batch": "non-finite.safetensors"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["non-finite.json", "non-finite.safetensors"]
    nested = flatten({"a": {"b": torch.ones(1)}, "c": None, "d": Targets(torch.zeros(1, 1, dtype=torch.int64)), "e": 3})
    assert set(nested) == {"a.b", "d.items"}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    norms = []
    for value in (0.0, math.inf, 0.0):
        model.zero_grad()
        loss = model(torch.ones(1, 2)).sum() + (value if rank == 1 else 0.0)
        Skips(5).watch(loss, None).backward()
        for parameter in model.parameters():  # what DDP does, without its threads, which may outlive the group
            torch.distributed.all_reduce(parameter.grad)
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    torch.save(torch.stack(norms), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_ranks_skip_the_step_that_is_spoiled_on_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for norms in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        assert norms.isfinite().tolist() == [True, False, True]
