import pytest
import torch

from genrl.catalog import load_dataset
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError
from genrl.sid.kmeans import KMeansConfig, kmeans, residual_kmeans
from tests.helpers import assert_same


def grid(side=4, copies=3):
    """Points at the crossings of two coarse and two fine directions: two levels describe them without loss."""
    coarse = 10 * torch.eye(side).repeat_interleave(side, dim=0)
    fine = torch.eye(side).repeat(side, 1)
    return torch.cat([coarse, fine], dim=1).repeat(copies, 1)


def test_two_levels_find_the_two_directions_of_a_grid():
    codes = residual_kmeans(grid(), levels=2, codes=4, iterations=20, seed=0)
    assert len(codes.unique(dim=0)) == 16
    rows = torch.arange(48) % 16
    for level, truth in ((0, rows // 4), (1, rows % 4)):
        pairs = torch.stack([codes[:, level], truth], dim=1).unique(dim=0)
        assert len(pairs) == 4, f"level {level + 1} mixes clusters"


def test_codes_are_the_same_for_any_number_of_threads_and_the_seed_decides():
    points = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = residual_kmeans(points, 2, 16, 6, seed=3)
        torch.set_num_threads(2)
        two = residual_kmeans(points, 2, 16, 6, seed=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert_same(one, two)
    assert not torch.equal(one, residual_kmeans(points, 2, 16, 6, seed=4))


def test_each_point_takes_its_nearest_centre():
    """On the last level the centres are means, so moving any point to another cluster cannot shorten its distance."""
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    codes = residual_kmeans(points, 1, 6, 200, seed=0)[:, 0]
    centres = torch.stack([points[codes == code].mean(dim=0) for code in range(6)])
    assert_same(torch.cdist(points, centres).argmin(dim=1), codes)


def test_no_code_stays_empty_among_distinct_points():
    points = torch.randn(500, 4, generator=torch.Generator().manual_seed(2))
    points[:480] *= 0.001
    codes = residual_kmeans(points, 1, 48, 10, seed=0)
    assert len(codes.unique()) == 48
    assert len(residual_kmeans(points[480:492], 1, 12, 5, seed=0).unique()) == 12  # as many codes as points
    few = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(10, 1)
    codes = residual_kmeans(few, 2, 5, 4, seed=0)
    assert len(codes.unique(dim=0)) == 2
    assert_same(codes[:2].repeat(10, 1), codes)


def test_more_codes_than_items_are_refused():
    dataset = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=30, items=60)))
    with pytest.raises(ConfigError, match=r"sid\.codes is 61, but the catalogue has 60 items.*smaller sid\.codes"):
        kmeans(KMeansConfig(codes=61), dataset)
