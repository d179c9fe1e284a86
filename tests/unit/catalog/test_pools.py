from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.catalog.pools import WINDOW, Pools, in_words
from genrl.catalog.sequences import Role, cooccurrence
from genrl.config.schema import DataConfig, PoolConfig, ToyConfig
from genrl.errors import ConfigError, DataError
from tests.helpers import assert_same

DATA = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=80, items=60)))
CONFIG = PoolConfig(size=20, neighbours=6, popular=4)
TEST = DATA.sequences.rows(Role.TEST)


def make(positions=TEST, data=DATA, vectors=None, **changes):
    return Pools(data, replace(CONFIG, **changes), vectors).at(positions)


def history_of(position: int) -> set[int]:
    user = int(DATA.sequences.users(torch.tensor([position])))
    return set(DATA.sequences.items[int(DATA.sequences.offsets[user]) : position].tolist())


def test_pools_hold_each_item_once_and_the_target_at_any_place():
    found = make(seen=True)
    assert all(len(set(row)) == 20 for row in found.items.tolist())
    assert found.items.min() >= 0
    assert found.ceiling == 1.0
    assert found.lacking == 0
    places = (found.items == DATA.sequences.items[TEST][:, None]).float().argmax(1)
    assert len(places.unique()) > 10


def test_items_of_the_history_are_left_out_and_with_them_targets_that_come_again():
    found = make()
    targets = DATA.sequences.items[TEST].tolist()
    again = [target in history_of(position) for target, position in zip(targets, TEST.tolist(), strict=True)]
    for row, position in zip(found.items.tolist(), TEST.tolist(), strict=True):
        assert not history_of(position) & set(row)
    assert found.lacking == sum(again)
    assert found.ceiling == 1 - sum(again) / len(again)


def test_the_pool_of_a_request_hangs_on_neither_its_batch_nor_its_place_but_on_the_seed():
    whole = make().items
    assert_same(make(TEST.flip(0)).items.flip(0), whole)
    assert_same(torch.cat([make(part).items for part in TEST.split(7)]), whole)
    assert not torch.equal(make(seed=1).items, whole)


def test_neighbours_are_those_that_co_occur_most_in_the_training_part():
    counts = torch.from_numpy(cooccurrence(DATA.sequences, 60, WINDOW).toarray())
    near = counts / (counts.sum(0).clamp(min=1)[:, None] * counts.sum(0).clamp(min=1)).sqrt()
    for row, position in zip(make(target=False, popular=0).items.tolist(), TEST.tolist(), strict=True):
        history = DATA.sequences.histories(torch.tensor([position]), 10)[0]
        scores = near[history[history >= 0]].sum(0)
        scores[list(history_of(position))] = -1
        assert set((scores.sort(descending=True, stable=True).indices[:6]).tolist()) <= set(row)


def test_neighbours_see_nothing_but_training_rows():
    held = DATA.sequences.roles != int(Role.TRAIN)
    items = torch.where(held, (DATA.sequences.items + 1) % 60, DATA.sequences.items)
    other = replace(DATA, sequences=replace(DATA.sequences, items=items))
    first = Pools(DATA, CONFIG).counts
    assert abs(first - Pools(other, CONFIG).counts).nnz == 0


def test_neighbours_by_embedding_point_where_the_history_does():
    vectors = torch.eye(60)
    vectors[:, 0] += torch.arange(60) / 1000
    history = torch.tensor([[7]])
    vectors[11], vectors[12] = vectors[7] + 0.1, vectors[7] + 0.2
    pools = Pools(DATA, replace(CONFIG, by="embedding", target=False, neighbours=2, popular=0, size=2), vectors)
    found = pools.make(history, torch.tensor([[5]]), torch.tensor([0]))
    assert set(found.items[0].tolist()) == {11, 12}
    assert (found.ceiling, found.lacking) == (0.0, 1)
    with pytest.raises(ValueError, match="need vectors"):
        Pools(DATA, replace(CONFIG, by="embedding"))


def test_popular_items_are_those_of_most_training_interactions():
    found = make(target=False, neighbours=0, popular=20, seen=True).items
    order = DATA.catalog.train_counts.argsort(descending=True, stable=True)[:20]
    assert all(set(row) == set(order.tolist()) for row in found.tolist())


def test_a_small_catalogue_fills_up_with_padding_and_an_empty_pool_is_refused():
    assert make(size=500, seen=True).items.shape == (len(TEST), 60)
    seen = torch.arange(59)[None]
    found = Pools(DATA, CONFIG).make(seen, torch.tensor([[59]]), torch.tensor([3]))
    assert sorted(found.items[0].tolist()) == [-1] * 19 + [59]
    with pytest.raises(DataError, match="pool of request 0 is empty: all 60 items are in the history"):
        Pools(DATA, CONFIG).make(torch.arange(60)[None], torch.tensor([[59]]), torch.tensor([3]))
    with pytest.raises(DataError, match=r"pool of user 'u7' is empty.*Set data\.pool\.seen=true, or take the user out"):
        Pools(DATA, CONFIG).make(torch.arange(60)[None], torch.tensor([[59]]), torch.tensor([3]), ["u7"])


def test_several_targets_are_counted_one_by_one():
    found = Pools(DATA, CONFIG).make(torch.tensor([[3]]), torch.tensor([[3, 9, -1]]), torch.tensor([0]))
    assert_same(found.reached, [[False, True, False]])
    assert found.ceiling == 0.5
    assert found.lacking == 0


def test_pools_without_room_for_what_they_shall_hold_are_refused():
    with pytest.raises(
        ConfigError, match=r"data.pool.size = 10: has no room for 40 neighbours, 20 popular items and a"
    ):
        load_dataset(DataConfig(pool=PoolConfig(size=10)))
    with pytest.raises(ConfigError, match=r"data.pool.size = 0: must be at least 1"):
        load_dataset(DataConfig(pool=PoolConfig(size=0)))


def test_pools_in_words():
    assert in_words(CONFIG).startswith("candidate pools of 20 items: the targets, 6 neighbours by cooccurrence")
