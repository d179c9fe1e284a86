"""Two processes with different numbers of prompts give the weights and gradients of one process."""

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from tests.helpers import assert_same
from tests.property.rollouts import OBJECTIVE_OPTIONS, Sample, make, sample

PARTS = (slice(0, 3), slice(3, 4))
LAYOUT = "slate"


def outcome(name: str, batch: Sample) -> dict[str, Tensor]:
    objective = make(name)
    experience = batch.experience(objective)
    loss, gradient = batch.run(objective, experience)
    objective.after_step()
    state = {f"state/{key}": value for key, value in objective.state_dict().items() if key.endswith("mean")}
    shown = {name: getattr(experience, name) for name in ("advantages", "weights", "mass")}
    return {"loss": loss, "gradient": gradient, **shown, **experience.extras, **state}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {name: outcome(name, sample(LAYOUT).prompts(PARTS[rank])) for name in OBJECTIVE_OPTIONS}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_are_one_batch(tmp_path):
    torch.multiprocessing.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in OBJECTIVE_OPTIONS:
        whole = outcome(name, sample(LAYOUT))
        first, second = (rank[name] for rank in ranks)
        for key, value in whole.items():
            if key.startswith("state/"):
                assert_same(first[key], value)
                assert_same(second[key], value)
            elif key == "loss":
                assert_same((first[key] + second[key]) / 2, value)
            else:  # DDP averages gradients over ranks, so what carries a denominator is twice as large on each
                scale = 2.0 if key in ("gradient", "weights", "mass") else 1.0
                assert_same(torch.cat([first[key], second[key]]), value * scale)
