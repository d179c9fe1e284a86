import random

import pytest
import torch

from genrl.catalog import Role, load_dataset
from genrl.config.schema import ColumnsConfig, DataConfig, ToyConfig
from genrl.errors import ConfigError, DataError
from tests.helpers import assert_same
from tests.unit.catalog.files import COLUMNS, files_config, load, rows_of, write

HISTORIES = {"u1": "abcde", "u2": "bcda", "u3": "cab", "u4": "ab"}


def random_histories(seed, users=40):
    chance = random.Random(seed)
    return {f"u{n:02}": [f"i{chance.randrange(30)}" for _ in range(chance.randrange(1, 12))] for n in range(users)}


def named(dataset, role):
    positions = dataset.sequences.rows(role)
    return {
        dataset.sequences.user_ids[user]: dataset.catalog.item_ids[item]
        for user, item in zip(
            dataset.sequences.users(positions).tolist(), dataset.sequences.items[positions].tolist(), strict=True
        )
    }


def test_leave_one_out_end_to_end(tmp_path):
    dataset = load(tmp_path, HISTORIES)
    assert dataset.name == f"{tmp_path.name}/log.parquet"
    assert dataset.catalog.item_ids == ("a", "b", "c", "d", "e")
    assert named(dataset, Role.TEST) == {"u1": "e", "u2": "a", "u3": "b"}
    assert named(dataset, Role.VALID) == {"u1": "d", "u2": "d", "u3": "a"}
    assert named(dataset, Role.RL) == {"u1": "c", "u2": "c", "u4": "b"}
    assert_same(dataset.catalog.train_counts, [2, 3, 3, 0, 0])
    for suffix in ("csv", "jsonl"):
        config = files_config(write(tmp_path / f"log.{suffix}", rows_of(HISTORIES)))
        assert load_dataset(config).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_the_order_of_rows_matters_for_ties_in_the_order_of_the_file_alone(tmp_path, split):
    rows = [(user, item, number) for number, (user, item, _) in enumerate(rows_of(random_histories(0)))]
    one = load_dataset(files_config(write(tmp_path / "a.csv", rows), split=split))
    random.Random(0).shuffle(rows)
    other = load_dataset(files_config(write(tmp_path / "b.csv", rows), split=split))
    assert one.fingerprint == other.fingerprint
    path = write(tmp_path / "ties.csv", [("u", item, 5) for item in "dbca"])
    tied = load_dataset(files_config(path, ties="file")).sequences
    assert_same(tied.items, [3, 1, 2, 0])
    assert_same(tied.times, [0, 0, 0, 0])


def test_position_wins_over_time_and_feedback_and_attributes_stay_beside_their_rows(tmp_path):
    rows = [("u", "a", 1, 2, 0.5), ("u", "x", 0, 0, 9), ("u", "b", 2, 1, ""), ("u", "a", 3, 0, 1), ("u", "b", 3, 4, 2)]
    path = write(tmp_path / "log.csv", rows, (*COLUMNS, "place", "score"))
    items = write(tmp_path / "items.csv", [("x", "Elm"), ("b", ""), ("a", "Oak")], ("item_id", "brand"))
    columns = ColumnsConfig(position="place", title=None, category=None, feedback=["score"], attributes=["brand"])
    config = files_config(path, items=items, columns=columns, rl_holdout=0, k_core=2)
    dataset = load_dataset(config)
    assert dataset.catalog.attributes == {"brand": ["", "Oak"]}
    assert_same(dataset.sequences.items, [1, 0, 1, 0])
    assert torch.equal(dataset.sequences.feedback["score"].nan_to_num(-1), torch.tensor([1, -1, 0.5, 2]))
    for name in ("feedback", "attributes"):
        before = getattr(columns, name)
        setattr(columns, name, [])
        assert load_dataset(config).fingerprint != dataset.fingerprint
        setattr(columns, name, before)


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("seed", range(2))
def test_parts_are_disjoint_and_histories_hold_only_the_past(tmp_path, split, seed):
    dataset = load(tmp_path, random_histories(seed), split=split, rl_holdout=2)
    sequences = dataset.sequences
    parts = [sequences.rows(role) for role in Role]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(sequences)))
    for role in (Role.RL, Role.VALID, Role.TEST):
        positions = sequences.rows(role)
        histories = sequences.histories(positions, 50)
        assert (histories[:, -1] >= 0).all(), "a target without history"
        for position, history in zip(positions.tolist(), histories, strict=True):
            user = int(sequences.users(torch.tensor([position])))
            start = int(sequences.offsets[user])
            assert history[history >= 0].tolist() == sequences.items[start:position].tolist()
            assert (sequences.times[start:position] <= sequences.times[position]).all()


def column_config(tmp_path, rows, **options):
    columns = ColumnsConfig(split="part")
    path = write(tmp_path / "log.csv", rows, (*COLUMNS, "part"))
    return files_config(path, columns=columns, split="column", **options)


def test_split_by_a_column_and_history_only_rows(tmp_path):
    parts = ["history_only", "train", "train", "valid", "test"]
    rows = [("u1", item, n, part) for n, (item, part) in enumerate(zip("abcde", parts, strict=True))]
    rows += [("u2", "a", 1, "test"), ("u2", "b", 2, "test")]
    sequences = load_dataset(column_config(tmp_path, rows)).sequences
    wanted = [Role.HISTORY, Role.TRAIN, Role.RL, Role.VALID, Role.TEST, Role.HISTORY, Role.TEST]
    assert_same(sequences.roles.long(), [int(role) for role in wanted])
    rows = [("u1", "a", 1, "train"), ("u1", "b", 2, "test"), ("u1", "c", 3, "valid")]
    with pytest.raises(DataError, match=r"log\.csv:4: user 'u1' has a valid row after a test row"):
        load_dataset(column_config(tmp_path, rows, rl_holdout=0))
    rows = [(f"u{u}", f"i{n}", 10 * n + u, "history_only" if n == 0 else "train") for u in range(6) for n in range(6)]
    config = column_config(tmp_path, rows)
    for split in ("leave_one_out", "temporal"):  # never a target
        config.split = split
        sequences = load_dataset(config).sequences
        assert_same(sequences.rows(Role.HISTORY), sequences.offsets[:-1])
        assert_same(sequences.items[sequences.rows(Role.HISTORY)], [0] * 6)


def test_k_core_drops_items_from_the_catalogue(tmp_path):
    histories = {**{f"u{n}": "abcabc" for n in range(3)}, "rare": "xyz"}
    dataset = load(tmp_path, histories, k_core=3)
    assert dataset.catalog.item_ids == ("a", "b", "c")
    assert dataset.sequences.user_ids == ("u0", "u1", "u2")
    with pytest.raises(DataError, match="k_core: 50 leaves no interaction of 21"):
        load(tmp_path, histories, k_core=50)


def test_item_table_orders_the_catalogue_and_may_hold_unseen_items(tmp_path):
    rows = [("z", "Zinc", "Metal"), ("c", "Cup", "Tea"), ("b", "Bag", "Tea"), ("a", "Ale", None)]
    items = write(tmp_path / "items.csv", rows, ("item_id", "title", "category"))
    histories = {"u1": "abcab", "u2": "bcabc"}
    dataset = load(tmp_path, histories, items=items)
    assert load(tmp_path, histories, items=items, cold_fraction=0.9).fingerprint != dataset.fingerprint
    catalog = dataset.catalog
    assert catalog.item_ids == ("z", "c", "b", "a")
    assert catalog.titles[catalog.row("c")] == "Cup"
    assert catalog.category_names == ("Metal", "Tea")
    assert int(catalog.train_counts[0]) == 0
    assert bool(catalog.cold[0])


@pytest.mark.parametrize(
    ("histories", "options", "said"),
    [
        ({"u1": "ab", "u2": "ba"}, {}, "the valid part is empty after data.split: leave_one_out of 4 interactions"),
        ({"u1": "abc", "u2": "bac"}, {}, "the rl part is empty.*rl_holdout=0"),
        ({"u1": "a", "u2": "b", "u3": "c"}, {"split": "temporal"}, "the valid part is empty.*valid_fraction"),
    ],
)
def test_an_empty_part_is_refused(tmp_path, histories, options, said):
    with pytest.raises(DataError, match=said):
        load(tmp_path, histories, **options)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DataConfig(source="files"), r"data\.interactions = None: is needed by data\.source=files"),
        (DataConfig(test_fraction=0.0), r"data\.test_fraction = 0\.0: must be above 0"),
        (DataConfig(cold_fraction=1.5), r"data\.cold_fraction = 1\.5: must be at least 0 and below 1"),
        (DataConfig(k_core=-1), r"data\.k_core = -1: must be at least 0"),
        (DataConfig(toy=ToyConfig(world="toy", items=20)), r"data\.toy\.items = 20: must be at least 48"),
        (DataConfig(toy=ToyConfig(world="toy", users=5)), r"data\.toy\.users = 5: must be at least 10"),
    ],
)
def test_contradicting_options_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        load_dataset(config)


def test_a_clock_is_kept_where_its_unit_is_said_and_must_not_run_backwards(tmp_path):
    path = write(tmp_path / "log.csv", [("u", item, time) for time, item in enumerate("abcd")])
    assert load_dataset(files_config(path)).sequences.clock is None
    found = load_dataset(files_config(path, time_unit="hours"))
    assert_same(found.sequences.clock, [0, 3600 * 10**9, 7200 * 10**9, 10800 * 10**9])
    assert found.fingerprint == load_dataset(files_config(path)).fingerprint
    rows = [("u", "a", 5, 0), ("u", "b", 4, 1), ("u", "c", 6, 2), ("u", "d", 7, 3)]
    path = write(tmp_path / "places.csv", rows, (*COLUMNS, "place"))
    config = files_config(path, columns=ColumnsConfig(position="place"), time_unit="s")
    with pytest.raises(DataError, match=r"places\.csv:3: user 'u' has an earlier time here .*\(1 such rows\)"):
        load_dataset(config)
    assert load_dataset(files_config(path, columns=ColumnsConfig(position="place"))).sequences.clock is None


def test_toy_data_has_days():
    toy = ToyConfig(users=30, items=50)
    assert load_dataset(DataConfig(toy=toy)).sequences.clock is None
    sequences = load_dataset(DataConfig(toy=toy, time_unit="days")).sequences
    assert not (sequences.clock % (86_400 * 10**9)).any()
    same_user = sequences.users(torch.arange(len(sequences))).diff() == 0
    assert bool((sequences.clock.diff()[same_user] > 0).all())
    with pytest.raises(ConfigError, match=r"data\.time_unit = 's': must be days or null"):
        load_dataset(DataConfig(toy=toy, time_unit="s"))
