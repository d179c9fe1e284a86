"""Metrics against slow references in plain Python, and the published goldens."""

import math
from itertools import combinations

import pytest
import torch

from genrl.batches import Ranking
from genrl.metrics import functional as F
from tests.helpers import assert_same

SEEDS = range(6)
CATALOG, CATEGORIES, ROWS, WIDTH, TARGETS = 15, 4, 20, 8, 3


def random_case(seed):
    """Rankings with repeats, invalid entries and pads; targets with pads, repeats and empty rows."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(-1, CATALOG, (ROWS, WIDTH), generator=generator)
    targets = torch.randint(-1, CATALOG, (ROWS, TARGETS), generator=generator)
    targets[0] = -1
    items[1] = -1
    categories = torch.randint(-1, CATEGORIES, (CATALOG,), generator=generator)
    history = torch.randint(-1, CATALOG, (ROWS, 4), generator=generator)
    codes = torch.randint(0, 3, (CATALOG, 2), generator=generator)
    return items, targets, categories, history, codes


def unique(values):
    return [value for place, value in enumerate(values) if value >= 0 and value not in values[:place]]


def slow_entropy(labels):
    shares = [labels.count(label) / len(labels) for label in set(labels)]
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("level", ["item", "sid"])
def test_recall_and_ndcg(seed, k, level):
    items, targets, _, _, codes = random_case(seed)
    keys = F.sid_keys(codes) if level == "sid" else None
    ranks = F.target_ranks(items, targets, keys)
    name = {row: tuple(codes[row].tolist()) for row in range(CATALOG)} if level == "sid" else range(CATALOG)
    for row in range(ROWS):
        top, wanted = (
            list(dict.fromkeys(name[item] for item in listed[row].tolist() if item >= 0)) for listed in (items, targets)
        )
        hits = [label in wanted for label in top[:k]]
        recall = sum(hits) / len(wanted) if wanted else 0.0
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        ndcg = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits)) / ideal if wanted else 0.0
        assert bool(F.has_target(ranks)[row]) == bool(wanted)
        assert_same(F.recall_at_k(ranks, k)[row], recall)
        assert_same(F.ndcg_at_k(ranks, k)[row], ndcg)


@pytest.mark.parametrize("seed", SEEDS)
def test_distinct_and_exclude_history(seed):
    items, _, _, history, _ = random_case(seed)
    scores = torch.linspace(2, 1, WIDTH).repeat(ROWS, 1).masked_fill(items < 0, -math.inf)
    left = F.exclude_history(Ranking(items, scores), history)
    assert F.distinct(items).tolist() == [pad(unique(row), WIDTH) for row in items.tolist()]
    for row in range(ROWS):
        seen = history[row].tolist()
        kept = [place for place, item in enumerate(items[row].tolist()) if item >= 0 and item not in seen]
        assert left.items[row].tolist() == pad([int(items[row, place]) for place in kept], WIDTH)
        expected = [float(scores[row, place]) for place in kept]
        assert left.scores[row].tolist() == expected + [-math.inf] * (WIDTH - len(kept))


def pad(values, width):
    return values + [-1] * (width - len(values))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [2, 8])
def test_entropy_exposure_and_shares(seed, k):
    items, _, categories, history, _ = random_case(seed)
    tops = [unique(row)[:k] for row in items.tolist()]
    entropy, counted = F.entropy_at_k(items, categories, CATEGORIES, k)
    shown = [0] * CATALOG
    for row, top in enumerate(tops):
        labels = [int(categories[item]) for item in top if categories[item] >= 0]
        assert bool(counted[row]) == bool(labels)
        assert_same(entropy[row], torch.tensor(slow_entropy(labels) if labels else 0.0, dtype=torch.float64))
        for item in top:
            shown[item] += 1
        seen = sum(item in history[row].tolist() for item in top) / k
        assert_same(F.history_slots(items, history, k)[row], seen)
    counts = F.exposures(items, k, CATALOG)
    assert counts.tolist() == shown
    pooled = [int(categories[item]) for item, times in enumerate(shown) for _ in range(times) if categories[item] >= 0]
    assert_same(F.corpus_entropy(counts, categories, CATEGORIES), slow_entropy(pooled))
    assert_same(F.coverage(counts).item(), sum(times > 0 for times in shown) / CATALOG)
    largest = sorted(shown, reverse=True)
    assert_same(F.top_share(counts, 0.2).item(), sum(largest[:3]) / sum(shown))
    gaps = sum(abs(a - b) for a in shown for b in shown)
    assert_same(F.gini(counts).item(), gaps / (2 * CATALOG * sum(shown)))


def test_masked_rows_are_not_exposed():
    items = torch.tensor([[0, 1], [2, 3]])
    assert F.exposures(items, 2, 4, torch.tensor([False, True])).tolist() == [0, 0, 1, 1]


def test_nothing_recommended_is_not_a_division_by_zero():
    counts = torch.zeros(5, dtype=torch.int64)
    assert F.gini(counts) == F.top_share(counts) == F.coverage(counts) == 0
    assert F.entropy_of_counts(counts) == 0


def test_golden_next_item():
    ranks = torch.tensor([[0], [2], [30], [9]])  # golden ranks [0, 2, None, 9]
    assert F.recall_at_k(ranks, 5).mean() == 0.5
    assert F.recall_at_k(ranks, 10).mean() == 0.75
    assert F.ndcg_at_k(ranks, 5).mean() == 0.375
    assert_same(F.ndcg_at_k(ranks, 10).mean(), torch.tensor(0.44726620657947197, dtype=torch.float64))


def test_a_repeated_item_takes_one_place():
    # Golden: predictions x b b a, ground truth a b c.
    items, targets = torch.tensor([[9, 1, 1, 0]]), torch.tensor([[0, 1, 2]])
    ranks = F.target_ranks(items, targets)
    assert ranks.tolist() == [[2, 1, 4]]  # the repeated b gives its place up, so a is third
    expected = torch.tensor([1 / 3, 2 / 3, 2 / 3], dtype=torch.float64)
    assert_same(torch.cat([F.recall_at_k(ranks, k) for k in (2, 3, 4)]), expected)


def test_golden_entropy():
    slates = [[0, 1, 2], [0, 0, 1], [0, 0, 0], [1, 1, 2], [2, 2, 2], [0, 1, 2], [0, 1, 1], [1, 1, 1]]
    high, middle = 1.0986122886681096, 0.6365141682948128
    # Items 3c, 3c + 1, 3c + 2 belong to category c, so that a slate may hold a category several times.
    categories = torch.arange(3).repeat_interleave(3)
    items = torch.tensor([[3 * c + slate[:place].count(c) for place, c in enumerate(slate)] for slate in slates])
    entropy, counted = F.entropy_at_k(items, categories, 3, 3)
    assert counted.all()
    expected = torch.tensor([high, middle, 0, middle, 0, high, middle, 0], dtype=torch.float64)
    assert_same(entropy, expected)
    assert_same(entropy.mean(), torch.tensor(0.5133458852775822, dtype=torch.float64))
    assert_same(entropy.mean() / math.log(2), torch.tensor(0.7406015629507225, dtype=torch.float64))
    pooled = F.corpus_entropy(F.exposures(items, 3, 9), categories, 3)
    assert_same(pooled, torch.tensor(1.077556327066801, dtype=torch.float64))
    assert_same(F.largest_entropy(10, 100), 2.302585092994046)
    assert_same(F.largest_entropy(10, 100) / math.log(2), 3.321928094887362)
    assert_same(F.largest_entropy(10, 6), math.log(6))


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples():
    for samples in range(1, 7):
        for hits in range(samples + 1):
            drawn = [True] * hits + [False] * (samples - hits)
            for k in range(1, samples + 1):
                wanted = [any(part) for part in combinations(drawn, k)]
                found = F.pass_at_k(torch.tensor([hits]), samples, k)
                assert_same(found, torch.tensor([sum(wanted) / len(wanted)], dtype=torch.float64))
    with pytest.raises(ValueError, match="pass@4 of 3 samples"):
        F.pass_at_k(torch.tensor([1]), 3, 4)


def test_the_reciprocal_rank_is_that_of_the_first_target():
    ranks = torch.tensor([[3, 0, -1], [9, 4, -1], [-1, -1, -1], [2, -1, -1]])
    assert F.reciprocal_rank_at_k(ranks, 4).tolist() == [1.0, 0.0, 0.0, 1 / 3]
    assert F.reciprocal_rank_at_k(ranks, 5).tolist() == [1.0, 0.2, 0.0, 1 / 3]
