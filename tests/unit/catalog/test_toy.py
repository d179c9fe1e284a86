import numpy as np
import pytest
import torch

from genrl.catalog import Role, load_dataset
from genrl.catalog.toy import draw_world, generate
from genrl.config.schema import DataConfig, ToyConfig


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(DataConfig(toy=ToyConfig(world="toy")))


@pytest.fixture(scope="module")
def hop():
    return load_dataset(DataConfig(toy=ToyConfig(world="hop")))


def ndcg(scores, targets, k=10):
    """Mean NDCG@k of full score rows; a tie counts half."""
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return float(np.where(ranks < k, 1 / np.log2(ranks + 2), 0).mean())


def test_who_knows_the_rule_ranks_far_better_than_neighbours(dataset):
    sequences, items, size = dataset.sequences, dataset.sequences.items.numpy(), len(dataset.catalog)
    positions = sequences.rows(Role.VALID)
    histories, targets = sequences.histories(positions, 30).numpy(), items[positions]
    shown = np.zeros((len(histories), size))
    rows, places = np.nonzero(histories >= 0)
    shown[rows, histories[rows, places]] = 1

    # Item-kNN: how often two items are bought by the same user in training, cosine-normalised.
    users, known = sequences.users(torch.arange(len(items))).numpy(), sequences.roles.numpy() <= int(Role.RL)
    bought = np.zeros((len(sequences.user_ids), size))
    bought[users[known], items[known]] = 1
    together = bought.T @ bought
    np.fill_diagonal(together, 0)
    cosine = together / np.sqrt(np.outer(bought.sum(0), bought.sum(0))).clip(1e-9)
    # How often two items stand next to each other in training, in either order.
    pairs = (users[1:] == users[:-1]) & known[1:]
    adjacent = np.zeros((size, size))
    np.add.at(adjacent, (items[:-1][pairs], items[1:][pairs]), 1)
    adjacent += adjacent.T

    world = draw_world(ToyConfig(world="toy"))
    neighbours = np.where(shown > 0, -1, shown @ cosine)
    following = world.following(histories[:, -1], histories[:, -2])
    oracle = neighbours.copy()
    oracle[np.arange(len(targets)), following] += 1e3 * (following >= 0)
    assert 0.55 < ndcg(oracle, targets) < 0.75
    assert ndcg(neighbours, targets) < 0.15
    assert ndcg(np.tile(dataset.catalog.train_counts.numpy(), (len(targets), 1)), targets) < 0.06
    assert ndcg(np.where(shown > 0, -1, adjacent[histories[:, -1]]), targets) < 0.25
    latest, before = np.divmod(np.arange(size**2), size)
    followers = [len(set(row.tolist())) for row in world.following(latest, before).reshape(size, size)]
    assert min(followers) >= 9  # the rule leads to many items from each


def test_what_follows_in_the_world_hop_hangs_on_all_of_a_chain_of_four(hop):
    sequences = hop.sequences
    positions = sequences.rows(Role.TEST)
    recent = sequences.histories(positions, 4).numpy().T[::-1]
    world = draw_world(ToyConfig(world="hop"))
    follows = world.following(*recent) == sequences.items[positions].numpy()
    assert 0.6 < follows.mean() < 0.8
    for back in range(4):  # with any one of the four another item, something else follows
        others = [*recent]
        others[back] = np.roll(others[back], 1)
        assert (world.following(*others) == world.following(*recent)).mean() < 0.2


def test_a_teacher_has_a_share_of_the_mixtures_wrong():
    rule = draw_world(ToyConfig(world="hop")).rule
    wrong = rule.mistaken(0.25, seed=3)
    assert (wrong != rule.mix).mean() == 0.25
    assert (rule.mistaken(0.25, seed=4) != wrong).any()
    assert (rule.mistaken(0.0, seed=3) == rule.mix).all()


def test_size_roles_and_popularity(dataset):
    counts = dataset.catalog.train_counts
    assert int(counts[dataset.catalog.cold].max()) < 25
    assert int(counts.max()) > 3 * float(counts.double().median())
    assert dataset.catalog.cold.sum() == 15
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
    small = (ToyConfig(users=30, items=60, seed=seed) for seed in (0, 0, 1))
    one, again, other = (load_dataset(DataConfig(toy=toy)) for toy in small)
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_no_user_buys_twice_or_before_the_launch_and_days_are_distinct():
    _, events = generate(ToyConfig(world="toy", users=300))
    world = draw_world(ToyConfig(world="toy", users=300))
    assert len(set(zip(events.users.tolist(), events.items.tolist(), strict=True))) == len(events)
    assert len(set(zip(events.users.tolist(), events.order.tolist(), strict=True))) == len(events)
    assert (world.launch[events.items] <= events.order).all()
