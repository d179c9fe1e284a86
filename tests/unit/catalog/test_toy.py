import numpy as np
import pytest

from genrl.catalog import Role, load_dataset
from genrl.catalog.toy import draw_world, generate
from genrl.config.schema import DataConfig, ToyConfig


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(DataConfig())


def ndcg(scores, targets, k=10):
    """Mean NDCG@k of full score rows; a tie counts half."""
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return float(np.where(ranks < k, 1 / np.log2(ranks + 2), 0).mean())


def evaluation(dataset):
    positions = dataset.sequences.rows(Role.VALID)
    return dataset.sequences.histories(positions, 30).numpy(), dataset.sequences.items[positions].numpy()


def seen(dataset, histories):
    shown = np.zeros((len(histories), len(dataset.catalog)))
    rows, places = np.nonzero(histories >= 0)
    shown[rows, histories[rows, places]] = 1
    return shown


def cosine_neighbours(dataset):
    """Item-kNN: how often two items are bought by the same user in training, cosine-normalised."""
    sequences = dataset.sequences
    known = ((sequences.roles == int(Role.TRAIN)) | (sequences.roles == int(Role.RL))).numpy()
    bought = np.zeros((len(sequences.user_ids), len(dataset.catalog)))
    users = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets.numpy()))
    bought[users[known], sequences.items.numpy()[known]] = 1
    together = bought.T @ bought
    np.fill_diagonal(together, 0)
    counts = bought.sum(0)
    return together / np.sqrt(np.outer(counts, counts)).clip(1e-9)


def adjacent(dataset):
    """How often two items stand next to each other in training, in either order."""
    sequences = dataset.sequences
    users = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets.numpy()))
    items, roles = sequences.items.numpy(), sequences.roles.numpy()
    pairs = (users[1:] == users[:-1]) & (roles[1:] <= int(Role.RL))
    counts = np.zeros((len(dataset.catalog),) * 2)
    np.add.at(counts, (items[:-1][pairs], items[1:][pairs]), 1)
    return counts + counts.T


def test_who_knows_the_rule_ranks_far_better_than_neighbours(dataset):
    histories, targets = evaluation(dataset)
    world, shown = draw_world(ToyConfig()), seen(dataset, histories)
    neighbours = np.where(shown > 0, -1, shown @ cosine_neighbours(dataset))
    following = world.following(histories[:, -1], histories[:, -2])
    known = neighbours.copy()
    known[np.arange(len(targets)), following] += 1e3 * (following >= 0)
    oracle, knn = ndcg(known, targets), ndcg(neighbours, targets)
    popular = ndcg(np.tile(dataset.catalog.train_counts.numpy(), (len(targets), 1)), targets)
    beside = ndcg(np.where(shown > 0, -1, adjacent(dataset)[histories[:, -1]]), targets)
    assert 0.55 < oracle < 0.75
    assert knn < 0.15
    assert popular < 0.06
    assert beside < 0.25


def test_some_items_are_hardly_seen_and_some_are_popular(dataset):
    counts = dataset.catalog.train_counts
    assert int(counts[dataset.catalog.cold].max()) < 25
    assert int(counts.max()) > 3 * float(counts.double().median())
    assert dataset.catalog.cold.sum() == 15


def test_size_and_roles(dataset):
    assert (len(dataset.catalog), len(dataset.sequences.user_ids)) == (288, 1500)
    assert all(len(dataset.sequences.rows(role)) == 1500 for role in (Role.RL, Role.VALID, Role.TEST))
    assert 10_000 < len(dataset.sequences.rows(Role.TRAIN)) < 20_000


def test_titles_are_distinct_and_follow_the_tree(dataset):
    catalog = dataset.catalog
    assert len(set(catalog.titles)) == len(catalog)
    assert len(catalog.category_names) == 12
    row = catalog.row("i0")
    assert catalog.texts[row] == f"{catalog.titles[row]} Kitchen Knives"
    assert catalog.category_names[catalog.categories[row]] == "Knives"


@pytest.mark.parametrize("items", [48, 300, 1000])
def test_titles_stay_distinct_at_other_sizes(items):
    table, events = generate(ToyConfig(users=20, items=items))
    assert len(set(table.titles)) == len(table.item_ids) == items
    assert events.items.max() < items


def test_the_seed_decides_everything():
    one, again, other = (load_dataset(DataConfig(toy=ToyConfig(users=60, seed=seed))) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_no_user_buys_twice_or_before_the_launch_and_days_are_distinct():
    _, events = generate(ToyConfig(users=300))
    world = draw_world(ToyConfig(users=300))
    assert len(set(zip(events.users.tolist(), events.items.tolist(), strict=True))) == len(events)
    assert len(set(zip(events.users.tolist(), events.order.tolist(), strict=True))) == len(events)
    assert (world.launch[events.items] <= events.order).all()


def test_the_rule_leads_to_many_items_from_each():
    world = draw_world(ToyConfig())
    latest, before = np.divmod(np.arange(288 * 288), 288)
    following = world.following(latest, before).reshape(288, 288)
    followers = [len(set(row.tolist())) for row in following]
    assert min(followers) >= 9
