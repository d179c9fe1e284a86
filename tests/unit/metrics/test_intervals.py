"""The paired bootstrap on simulated users."""

import pytest
import torch

from genrl.metrics import intervals, paired_interval
from tests.helpers import assert_same


def simulated(rows, gain, seed):
    """Two models whose hits share the user's difficulty; `a` hits `gain` more often."""
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(rows, generator=generator)
    draw = torch.rand(rows, generator=generator)
    return (draw < easy * 0.2 + gain).double(), (draw < easy * 0.2).double()


def test_the_interval_has_its_coverage():
    # 200 experiments with a true difference of 0.05: a 90% interval covers it 180 times, give or take 4.2.
    covered = 0
    for seed in range(200):
        interval = paired_interval(*simulated(300, 0.05, seed), seed=seed, resamples=200, level=0.9)
        covered += interval.low <= 0.05 <= interval.high
    assert 165 <= covered <= 195


def test_it_agrees_with_the_normal_approximation():
    a, b = simulated(4000, 0.03, 0)
    interval = paired_interval(a, b, resamples=1000)
    error = (a - b).std() / len(a) ** 0.5
    assert_same(interval.mean, (a - b).mean().item())
    normal = 2 * 1.96 * error.item()
    assert 0.9 * normal < interval.high - interval.low < 1.1 * normal
    assert interval.low < interval.mean < interval.high


def test_equal_models_have_an_empty_interval_and_order_of_models_flips_it():
    a, b = simulated(100, 0.1, 1)
    assert paired_interval(a, a) == (0.0, 0.0, 0.0)
    forward, backward = paired_interval(a, b, seed=3), paired_interval(b, a, seed=3)
    assert forward.mean == -backward.mean
    assert_same(forward.low, -backward.high)


def test_seed_decides_and_chunks_do_not(monkeypatch):
    a, b = simulated(50, 0.1, 2)
    whole = paired_interval(a, b, seed=5, resamples=64)
    assert paired_interval(a, b, seed=5, resamples=64) == whole
    monkeypatch.setattr(intervals, "_CHUNK", 50 * 16)
    assert paired_interval(a, b, seed=5, resamples=64) == whole


def test_rows_must_pair_up():
    with pytest.raises(ValueError, match=r"\[3\] and \[2\]"):
        paired_interval(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="0 < level < 1"):
        paired_interval(torch.zeros(3), torch.zeros(3), level=95)
