import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from genrl.catalog import Role, load_dataset
from genrl.config.schema import ColumnsConfig, DataConfig, ToyConfig
from genrl.errors import DataError
from tests.helpers import assert_same
from tests.unit.catalog.files import COLUMNS, files_config, write

DAYS = {"ann": "ab cd e fg hi", "bob": "b a d c", "eve": "ihg fed", "one": "abcdefg"}
"""Items of each user, day by day."""


def rows_of(days=DAYS):
    return [
        (user, item, day) for user, words in days.items() for day, items in enumerate(words.split()) for item in items
    ]


def dataset(tmp_path, rows=None, name="log.csv", **options):
    path = write(tmp_path / name, rows_of() if rows is None else rows, COLUMNS)
    return load_dataset(files_config(path, rl_holdout=options.pop("rl_holdout", 0), **options))


def words_of(data):
    """Items of each user in their order, a blank between days."""
    found = {}
    for number, user in enumerate(data.sequences.user_ids):
        start, stop = data.sequences.offsets[number : number + 2].tolist()
        letters = [data.catalog.item_ids[item] for item in data.sequences.items[start:stop].tolist()]
        times = data.sequences.times[start:stop].tolist()
        new = ["", *(" " * (times[n] != times[n - 1]) for n in range(1, len(times)))]
        found[user] = "".join(blank + letter for blank, letter in zip(new, letters, strict=True))
    return found


def daily(words):
    return {user: [sorted(day) for day in text.split()] for user, text in words.items()}


def test_file_keeps_the_order_and_random_draws_one_that_does_not_depend_on_it(tmp_path):
    many = {f"u{n}": " ".join("abcdefghij"[n % 5 :][:4] for _ in range(4)) for n in range(12)}
    rows = rows_of(many)
    kept = dataset(tmp_path, rows, ties="file")
    drawn = dataset(tmp_path, rows)
    assert words_of(kept) == many
    assert daily(words_of(drawn)) == daily(many) != words_of(drawn)
    inside = [day for text in words_of(drawn).values() for day in text.split()]
    assert 0.2 < sum(pair[0] < pair[1] for day in inside for pair in pairwise(day)) / (3 * len(inside)) < 0.8
    random.Random(0).shuffle(rows)
    again = dataset(tmp_path, rows, name="other.csv")
    assert again.fingerprint == drawn.fingerprint
    assert dataset(tmp_path, rows, ties="file", name="other.csv").fingerprint != kept.fingerprint
    assert dataset(tmp_path, rows, ties_seed=1, name="other.csv").fingerprint != drawn.fingerprint


def test_without_ties_every_rule_gives_the_same_data():
    toy = DataConfig(toy=ToyConfig(world="toy", users=40, items=60))
    found = [load_dataset(replace(toy, ties=order)) for order in ("file", "random", "together")]
    assert len({data.fingerprint for data in found}) == 1
    assert {data.ties for data in found} == {""}
    assert not found[0].sequences.tied.any()


def test_together_divides_and_holds_out_days_and_shows_what_was_before(tmp_path):
    data = dataset(tmp_path, ties="together", rl_holdout=1)
    sequences = data.sequences
    letters = "".join("trve"[role] if role < 4 else "h" for role in sequences.roles.tolist())
    assert letters == "tttt" + "r" + "vv" + "ee" + "trve" + "ttt" + "rrr" + "ttttttt"
    for user, name in enumerate(sequences.user_ids):
        place, before, days = int(sequences.offsets[user]), "", words_of(data)[name].split()
        for day in days:
            for _ in day:
                shown = sequences.histories(torch.tensor([place]), 9)[0].tolist()
                assert "".join(data.catalog.item_ids[item] for item in shown if item >= 0) == before
                assert int(sequences.seen(torch.tensor([place]))) == len(before)
                place += 1
            before += day
        assert place == int(sequences.offsets[user + 1])
    assert data.fingerprint != dataset(tmp_path, rl_holdout=1).fingerprint


def test_what_has_nothing_before_its_day_is_no_target(tmp_path):
    rows = [(user, item, 10 * number) for number, (user, item, _) in enumerate(rows_of({"x": "a b c d e f g h"}))]
    late = [("y", item, 75) for item in "abc"]  # the test period, and all that the user has
    data = dataset(tmp_path, rows + late, split="temporal", test_fraction=0.4, ties="together")
    sequences = data.sequences
    assert sequences.roles[-3:].tolist() == [Role.HISTORY] * 3
    assert_same(sequences.seen(sequences.rows(Role.TEST)) > 0, torch.ones(1, dtype=torch.bool))


def test_a_split_column_and_history_only_rows_are_never_exchanged(tmp_path):
    parts = {"a": "history_only", "b": "train", "c": "train", "d": "train", "e": "valid", "f": "test"}
    rows = [(f"u{user}", item, 7, part) for user in range(9) for item, part in parts.items()]
    for ties in ("random", "together"):
        options = {"columns": ColumnsConfig(split="part"), "ties": ties}
        path = write(tmp_path / "log.csv", rows, (*COLUMNS, "part"))
        sequences = load_dataset(files_config(path, split="column", rl_holdout=0, **options)).sequences
        found = sequences.items.view(9, 6).tolist()
        assert all(row[0] == 0 and sorted(row[1:4]) == [1, 2, 3] and row[4:] == [4, 5] for row in found)
        assert len({tuple(row) for row in found}) > 1
    left = {"columns": ColumnsConfig(split="part")}  # one is left out: of the column, history_only alone counts
    sequences = load_dataset(files_config(path, **left)).sequences
    assert (sequences.items.view(9, 6)[:, 0] == 0).all()
    assert len(set(sequences.items[sequences.rows(Role.TEST)].tolist())) > 1
    with pytest.raises(DataError, match=r"valid part is empty.* With data\.ties=together, interactions of equal time"):
        load_dataset(files_config(path, ties="together", **left))


def test_tied_targets_share_the_time_of_what_stands_before_them(tmp_path):
    data = dataset(tmp_path, ties="file")
    assert_same(data.sequences.tied.long(), [0, 1, 0, 1, 0, 0, 1, 0, 1] + [0] * 4 + [0, 1, 1, 0, 1, 1] + [0] + [1] * 6)


ALPHABET = [f"B0{number:02}" for number in range(60)]


@pytest.mark.parametrize(
    ("order", "ties", "said"),
    [
        (1, "file", r"67% of the interactions .*\. They stand in the order of code in 100% of the cases: an artefact"),
        (-1, "file", "They stand in the order of code in 100% of the cases"),
        (0, "file", r"they stand in the order of the files \(data\.ties=file\)\.$"),
        (1, "random", r"their order is random \(data\.ties_seed=0; data\.ties=file keeps that of the files\)\.$"),
        (1, "together", r"none is in the history of another of the same time \(data\.ties=together\)\.$"),
    ],
)
def test_what_a_run_is_told_of_ties(tmp_path, order, ties, said):
    draw = random.Random(1)
    codes = dict(zip((f"{number}" for number in range(60)), draw.sample(ALPHABET, 60), strict=True))
    rows = []
    for user in range(30):
        for day in range(3):
            items = draw.sample(sorted(codes), 3)
            items = sorted(items, key=codes.get, reverse=order < 0) if order else items
            rows += [(f"u{user}", item, day) for item in items]
    items = write(tmp_path / "items.csv", list(codes.items()), ("item_id", "code"))
    columns = ColumnsConfig(title=None, category=None, attributes=["code"])
    data = dataset(tmp_path, rows, items=items, columns=columns, ties=ties)
    assert data.ties.startswith("ties: 67% of the interactions have the time of the one before them")
    assert re.search(said, data.ties), data.ties
