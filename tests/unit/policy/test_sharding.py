"""Two processes that share out a policy's weights: what they compute is what one computes with all of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from genrl.policy.model import Policy
from genrl.policy.reference import Reference
from genrl.policy.score import score
from genrl.policy.sharding import gathered, shard, sharded, shared_out, whole
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import TINY, make_layout, make_policy, make_prompts

OWN = (slice(0, 4), slice(4, 5))
"""Prompts of each rank: four with long rows, and one."""
CONFIGS = {
    "all weights": TINY,
    "adapters": replace(TINY, lora=replace(TINY.lora, rank=2)),
}


def completed(policy: Policy, group: int = 3) -> tuple[Any, ...]:
    layout, prompts = make_layout(policy), make_prompts(policy)
    noise = torch.rand(5, group, layout.length, generator=torch.Generator().manual_seed(1))
    return layout, prompts, write(policy, layout, prompts, group, noise=noise)


def loss(policy: Any, layout: Any, prompts: Any, drawn: Any, rows: slice) -> Tensor:
    return score(policy, layout, prompts.rows(rows), drawn.groups(rows)).logps.sum() / 64


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name, config in CONFIGS.items():
        policy = make_policy(config)
        layout, prompts, _ = completed(policy)
        shard(policy, mesh)
        reference = Reference(policy)
        with whole(policy):
            if rank == 1:  # as a rank does whose rows take longer
                completed(policy)
            layout, prompts, drawn = completed(policy)
        for _micro_batch in range(2):  # micro-batches add up
            loss(policy, layout, prompts, drawn, OWN[rank]).backward()
        gradients = {key: gathered(value.grad) for key, value in policy.trainable().items()}
        shares = all(isinstance(value, DTensor) for value in policy.trainable().values())
        with torch.no_grad():
            for value in policy.trainable().values():
                value.mul_(1.5)
        with whole(policy), reference.whole():
            held = [loss(one, layout, prompts, drawn, OWN[rank]) for one in (policy, reference)]
        state = policy.state()
        policy.load_state({key: value * 2 for key, value in state.items()}, "twice")
        twice = policy.state()
        one = next(iter(policy.trainable().values()))
        again = torch.equal(gathered(shared_out(gathered(one), one)), gathered(one))
        found[name] = (drawn.tokens, gradients, shares and again, held, state, twice)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_with_shares_are_one_with_all(name, ranks):
    policy = make_policy(CONFIGS[name])
    layout, prompts, drawn = completed(policy)
    assert not sharded(policy)
    reference = Reference(policy)
    (loss(policy, layout, prompts, drawn, slice(0, 5)) * 2).backward()
    with torch.no_grad():
        for value in policy.trainable().values():
            value.mul_(1.5)
    for rank, part in zip(ranks, OWN, strict=True):
        tokens, gradients, shares, held, state, twice = rank[name]
        assert torch.equal(tokens, drawn.tokens)
        assert shares
        for key, value in policy.trainable().items():
            assert_same(gradients[key] * 2, value.grad)  # gradients of ranks are averaged
            assert_same(state[key], value)
            assert_same(twice[key], value * 2)
        with torch.no_grad():
            assert_same(
                torch.stack(held), torch.stack([loss(one, layout, prompts, drawn, part) for one in (policy, reference)])
            )


def test_whole_changes_nothing_for_a_policy_that_is_whole():
    policy = make_policy()
    before = dict(policy.trainable())
    with whole(policy):
        assert not torch.is_grad_enabled()
        assert all(value is before[name] for name, value in policy.trainable().items())
