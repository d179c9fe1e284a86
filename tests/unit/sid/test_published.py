import json

import pytest
import torch

from genrl.catalog import Catalog, Dataset, Sequences
from genrl.errors import DataError
from genrl.sid import build_sid_table
from tests.helpers import assert_same

INDEX = {"i1": ["<a_10>", "<b_7>"], "i2": ["<a_2>", "<b_7>"], "i3": ["<a_10>", "<b_100>"]}


def dataset(ids=("i3", "i1", "i2")):
    none = torch.zeros(0, dtype=torch.int64)
    sequences = Sequences(none, none.to(torch.uint8), none, torch.zeros(1, dtype=torch.int64), ())
    return Dataset(Catalog.from_table(ids), sequences, "made")


def build(tmp_path, index, **options):
    path = tmp_path / "sids.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    return build_sid_table({"name": "import", "path": str(path), **options}, dataset())


def test_codes_are_numbered_per_level_in_their_own_order(tmp_path):
    table = build(tmp_path, INDEX)
    assert_same(table.codes, [[1, 1], [1, 0], [0, 0]])
    assert table.codebook_sizes == (2, 2)
    numbers = build(tmp_path, {"i1": [10, 0], "i2": [9, 0], "i3": [9, 3]})
    assert_same(numbers.codes, [[0, 1], [1, 0], [0, 0]])
    long = build(tmp_path, {"i1": [f"<a_1{'0' * 5_000}>"], "i2": [f"<a_09{'0' * 4_999}>"], "i3": ["<a_5>"]})
    assert_same(long.codes, [[0], [2], [1]])
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        build_sid_table({"name": "import", "path": str(tmp_path / "gone.json")}, dataset())


@pytest.mark.parametrize(("collisions", "levels"), [("token", 3), ("keep", 2)])
def test_collisions_of_a_published_index(tmp_path, collisions, levels):
    index = {"i1": ["<a_1>", "<b_1>"], "i2": ["<a_1>", "<b_1>"], "i3": ["<a_1>", "<b_2>"]}
    table = build(tmp_path, index, collisions=collisions)
    assert table.levels == levels
    assert table.report.colliding_items == 2


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (
            {"i1": ["<a_1>"], "i2": ["<a_2>"]},
            "another catalogue: item 'i3' has no SID. 1 of 3 catalogue items are miss",
        ),
        ({**INDEX, "i9": ["<a_1>", "<b_1>"]}, "another catalogue: item 'i9' is not in the catalogue. 0 of 3.*1 of 4"),
        ({**INDEX, "i2": ["<a_1>"]}, "item 'i2' has 1 codes, item 'i3' has 2"),
        ({**INDEX, "i2": "<a_1><b_1>"}, "item 'i2' has '<a_1><b_1>'. Expected a list"),
        ({**INDEX, "i2": ["<a_1>", None]}, "item 'i2' has"),
        ({**INDEX, "i2": [True, 1]}, "item 'i2' has"),
        ({}, "no JSON object of items"),
        ('{"i1": ["<a_1>"],\n oops}', r"sids\.json: not JSON .*line 2"),
        ('{"i1": ["<a_1>"], "i1": ["<a_2>"]}', "item 'i1' is there twice"),
        (
            {name: ["1"] * 30 for name in INDEX},
            "no Semantic IDs: there are 3[01] levels",
        ),
        ('{"i1": [' + "9" * 5_000 + "]}", "an integer of more than 4,300 digits"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, index, said):
    with pytest.raises(DataError, match=said):
        build(tmp_path, index)
