import re

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from genrl.ops import (
    all_finite,
    expect,
    group_view,
    masked_mean,
    segment_gather,
    segment_sum,
    where_not_finite,
    world_max,
    world_size,
    world_sum,
)
from tests.helpers import assert_same


@pytest.mark.parametrize(
    ("shape", "wanted", "message"),
    [
        ((2, 3), (3, 2), "x has shape [2, 3], expected [3, 2]"),
        ((2, 3), (None, 4), "x has shape [2, 3], expected [*, 4]"),
        ((2,), (2, None), "x has shape [2], expected [2, *]"),
        ((), (None,), "x has shape [], expected [*]"),
    ],
)
def test_a_wrong_shape_is_named(shape, wanted, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        expect(torch.zeros(shape), "x", wanted)


def test_a_wrong_dtype_is_named_with_what_is_allowed():
    expect(torch.zeros(2), "x", (2,), torch.int64, torch.float32)
    with pytest.raises(ValueError, match=r"x is torch.float32, expected torch.int64 or torch.bool"):
        expect(torch.zeros(2), "x", (2,), torch.int64, torch.bool)


def test_the_mean_counts_masked_values_only_and_is_zero_over_nothing():
    values = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    assert_same(masked_mean(values, torch.tensor([[True, False], [True, False]])), torch.tensor(2.0))
    assert_same(masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)), torch.tensor(0.0))


def test_rows_are_viewed_as_groups():
    rows = torch.arange(12).view(6, 2)
    assert group_view(rows, 3).tolist() == [rows[:3].tolist(), rows[3:].tolist()]
    with pytest.raises(ValueError, match="6 rows do not divide into groups of 4"):
        group_view(rows, 4)


def test_segment_sums_equal_a_loop_and_leave_out_no_segment():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    segments = torch.randint(-1, 4, (5, 9), generator=generator)
    wanted = [[float(row[ids == step].sum()) for step in range(4)] for row, ids in zip(values, segments, strict=True)]
    assert_same(segment_sum(values, segments, 4), wanted)


def test_gathering_is_the_transpose_of_summing():
    generator = torch.Generator().manual_seed(1)
    segments = torch.randint(-1, 3, (4, 6), generator=generator)
    tokens = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    steps = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    spread = segment_gather(steps, segments)
    assert bool((spread[segments < 0] == 0).all())
    assert_same((segment_sum(tokens, segments, 3) * steps).sum(), (tokens * spread).sum())


def test_one_process_is_its_own_world():
    value = torch.tensor(3.0)
    assert world_size() == 1
    assert world_sum(value) is value
    assert world_max(value) is value


def collect(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = torch.tensor([1.0, -5.0]) if rank == 0 else torch.tensor([10.0, -7.0])
    results = {"sum": world_sum(own), "max": world_max(own), "own": own, "size": torch.tensor(world_size())}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_sums_and_maxima_go_over_all_ranks_and_leave_the_input_alone(tmp_path):
    torch.multiprocessing.start_processes(collect, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank, own in enumerate(([1.0, -5.0], [10.0, -7.0])):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["sum"].tolist() == [11.0, -12.0]
        assert found["max"].tolist() == [10.0, -5.0]
        assert found["own"].tolist() == own
        assert int(found["size"]) == 2


def test_the_first_row_that_is_not_finite():
    wrong = torch.tensor([[0.0, 1.0], [2.0, float("nan")], [float("-inf"), 0.0]])
    assert where_not_finite(torch.ones(3, 2)) is None
    row, value, others = where_not_finite(wrong)
    assert (row, str(value), others) == (1, "nan", 1)
    assert [all_finite(values) for values in ([torch.ones(3)], [torch.ones(3), wrong])] == [True, False]
