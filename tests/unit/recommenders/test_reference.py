"""Reference rankers against slow definitions; what they may and may not know."""

import math

import pytest
import torch

from genrl.catalog import Role
from genrl.errors import ConfigError, DataError, UnsupportedError
from genrl.recommenders import BASELINES, ItemKNN, MostPopular, RepeatLast, reference_lines
from genrl.recommenders.reference import reference_rankers
from tests.helpers import assert_same
from tests.unit.recommenders.problems import dataset_of

CATALOG, USERS, LENGTH = 12, 15, 7


def dataset(seed=0, last=None):
    """Users of seven interactions: train x4, RL, valid, test; `last` overwrites the items of valid and test."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(0, CATALOG, (USERS, LENGTH), generator=generator)
    if last is not None:
        items[:, 5:] = last
    return dataset_of(
        items.tolist(),
        ["ttttrve"] * USERS,
        CATALOG,
        categories=["even" if row % 2 == 0 else "odd" for row in range(CATALOG)],
        cold=torch.arange(CATALOG) < 2,
    )


def slow_scores(data, history, window, similarity):
    """The definition of ItemKNN with loops."""
    trained = [row[:5] for row in data.sequences.items.view(USERS, LENGTH).tolist()]
    count = [sum(row.count(item) for row in trained) for item in range(CATALOG)]
    together = [[0.0] * CATALOG for _ in range(CATALOG)]
    for row in trained:
        for a in range(5):
            for b in range(5):
                if 0 < abs(a - b) <= window and row[a] != row[b]:
                    together[row[a]][row[b]] += 1 / abs(a - b)
    scores = [0.0] * CATALOG
    for age, seen in enumerate(reversed(history)):
        for item in range(CATALOG):
            if seen >= 0 and together[seen][item]:
                norm = count[seen] if similarity == "conditional" else math.sqrt(count[seen] * count[item])
                scores[item] += 0.5**age * together[seen][item] / norm
    return torch.tensor(scores)


@pytest.mark.parametrize("similarity", ["conditional", "cosine"])
@pytest.mark.parametrize("window", [1, 3])
def test_item_knn_is_its_definition(window, similarity):
    data = dataset()
    histories = data.sequences.histories(data.sequences.rows(Role.TEST), 5)
    histories[0, :4] = -1
    ranking = ItemKNN(data.sequences, CATALOG, window=window, similarity=similarity, chunk=4).best(histories, CATALOG)
    for row in range(USERS):
        expected = slow_scores(data, histories[row].tolist(), window, similarity)
        reached = ranking.scores[row] > 0
        assert_same(ranking.scores[row][reached], expected[ranking.items[row][reached]])
        assert int(reached.sum()) == int((expected > 0).sum())
        assert (ranking.scores[row].diff() <= 0).all()
        rest = data.catalog.train_counts[ranking.items[row][~reached]]
        assert (rest.diff() <= 0).all()  # unreached items by popularity
        assert sorted(ranking.items[row].tolist()) == list(range(CATALOG))


def test_item_knn_does_not_know_validation_and_test():
    histories = torch.tensor([[3, 4, 5], [-1, -1, 2]])
    plain = ItemKNN(dataset().sequences, CATALOG).best(histories, CATALOG)
    other = ItemKNN(dataset(last=7).sequences, CATALOG).best(histories, CATALOG)
    assert torch.equal(plain.items, other.items)
    assert_same(plain.scores, other.scores)
    wider = ItemKNN(dataset(last=7).sequences, CATALOG, known=(Role.TRAIN, Role.RL, Role.VALID)).best(
        histories, CATALOG
    )
    assert not torch.equal(wider.scores, other.scores)


def test_ties_go_by_row_and_the_popular_items_follow_what_is_known():
    nothing, data = torch.full((2, 4), -1), dataset()
    popular = MostPopular(torch.tensor([1, 5, 5, 2])).best(nothing, 3)
    assert popular.items.tolist() == [[1, 2, 3], [1, 2, 3]]
    knn = ItemKNN(data.sequences, CATALOG).best(nothing, 5)
    assert torch.equal(knn.items, MostPopular(data.catalog.train_counts).best(nothing, 5).items)
    repeated = RepeatLast(torch.tensor([9, 1, 2, 3, 4])).best(torch.tensor([[-1, 3, 2, 3]]), 4)
    assert repeated.items.tolist() == [[3, 2, 0, 4]]
    assert (repeated.scores.diff() < 0).all()


@pytest.mark.parametrize("name", ["most_popular", "repeat_last", "item_knn"])
def test_a_small_catalogue_ends_in_no_item(name):
    ranking = reference_rankers(dataset())[name].best(torch.tensor([[-1, 3]]), CATALOG + 2)
    assert sorted(ranking.items[0, :CATALOG].tolist()) == list(range(CATALOG))
    assert ranking.items[0, CATALOG:].tolist() == [-1, -1]
    assert ranking.scores[0, CATALOG:].isneginf().all()


def test_reference_lines_score_all_rankers_raw_and_without_history():
    data = dataset()
    lines = reference_lines(data, Role.TEST, k=[1, 3], history_length=4, chunk=4)
    names = {
        f"{name}{end}" for name in ("most_popular", "repeat_last", "item_knn") for end in ("", "/history_excluded")
    }
    assert set(lines) == names
    assert all(line["rows"] == USERS for line in lines.values())
    positions = data.sequences.rows(Role.TEST)
    previous, target = data.sequences.items[positions - 1], data.sequences.items[positions]
    assert_same(lines["repeat_last"]["recall@1"], (previous == target).double().mean().item())
    best = data.catalog.train_counts.argmax()
    assert_same(lines["most_popular"]["recall@1"], (target == best).double().mean().item())
    assert lines["repeat_last"]["history_share@1"] == 1
    excluded = [line for name, line in lines.items() if name.endswith("/history_excluded")]
    assert all(line["history_share@3"] == 0 and line["valid_rate"] == 1 for line in excluded)
    assert lines == reference_lines(data, Role.TEST, k=[1, 3], history_length=4, chunk=100)
    some = data.sequences.rows(Role.VALID)[:4]
    assert reference_lines(data, Role.VALID, k=[1], positions=some)["item_knn"]["rows"] == 4


def test_nothing_to_score_and_a_window_of_nothing_are_refused():
    with pytest.raises(DataError, match="valid part has no rows"):
        reference_lines(dataset(), Role.VALID, positions=torch.empty(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"window.* at least 1"):
        BASELINES.build("item_knn", {"window": 0})


@pytest.mark.parametrize("similarity", ["conditional", "cosine"])
def test_knn_probabilities_are_scores_smoothed_with_popularity(similarity):
    data = dataset()
    histories = torch.tensor([[-1, 3, 1], [2, 2, 7], [-1, -1, -1]])
    found = ItemKNN(data.sequences, CATALOG, 2, similarity, chunk=2).likelihoods(histories)
    trained = data.sequences.items.view(USERS, LENGTH)[:, :5].flatten()
    order = torch.bincount(trained, minlength=CATALOG).argsort(descending=True, stable=True).tolist()
    harmonic = sum(1 / rank for rank in range(1, CATALOG + 1))
    popular = torch.tensor([1 / (order.index(item) + 1) / harmonic for item in range(CATALOG)])
    for row, history in enumerate(histories[:2].tolist()):
        scores = slow_scores(data, history, 2, similarity)
        assert_same(found[row].exp(), 0.9 * scores / scores.sum() + 0.1 * popular)
    assert_same(found[2].exp(), popular)


def test_popularity_is_a_distribution_and_an_order_is_none():
    found = MostPopular(torch.tensor([1, 0, 7])).likelihoods(torch.zeros(2, 1, dtype=torch.int64))
    assert_same(found.exp(), [[2 / 11, 1 / 11, 8 / 11]] * 2)
    with pytest.raises(UnsupportedError, match=r"neither prior nor teacher\. Take a run of sasrec"):
        RepeatLast(torch.tensor([1, 0, 7])).likelihoods(torch.zeros(2, 1, dtype=torch.int64))


def test_equal_scores_of_item_knn_stand_in_order_of_popularity_however_wide_the_ranking_is() -> None:
    neighbours = [[0, item] for item in range(1, 50)]  # each once beside item 0, all with one score
    knn = ItemKNN(dataset_of([*neighbours, [7], [30], [30]], size=60).sequences, 60)
    history = torch.tensor([[0]])
    whole = knn.best(history, 60)
    left = [item for item in range(1, 50) if item not in (7, 30)]
    assert whole.items[0].tolist() == [30, 7, *left, 0, *range(50, 60)]  # not reached: 0 itself, and what nobody chose
    assert len(set(whole.scores[0, :49].tolist())) == 1
    for width in (1, 3, 10, 20, 40):
        assert knn.best(history, width).items.tolist() == whole.items[:, :width].tolist()
