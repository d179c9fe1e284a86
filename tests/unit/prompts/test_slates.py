from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.errors import DataError
from genrl.prompts.slates import held_out_items, read_slates, slate_places
from tests.helpers import write_lines
from tests.unit.recommenders.problems import dataset_of

ACTIONS = dataset_of([[0, 1, 2, 1, 3, 4, 5], [0, 1, 6, 1]], ["htttrve", "ttve"], size=8)
DATASET = Dataset(Catalog.from_table(list("abcdefgh")), replace(ACTIONS.sequences, user_ids=("ann", "7")), "shop")


def test_lines_are_slates_for_training_prompts_and_for_those_of_rl(tmp_path):
    path = write_lines(
        tmp_path / "slates.jsonl",
        {"user": "ann", "item": "b", "items": ["h", "b", "a"], "reward": 0.5, "run": "x"},
        "",
        {"user": "ann", "item": "d", "items": ["d", "g", "c"]},  # held out for rl, and g by another user
        {"user": 7, "item": "a", "items": ["b", "e", "f"]},  # b is tested, but learned as well
    )
    found = read_slates(path, DATASET, 3)
    assert found.positions.tolist() == [3, 4, 7]
    assert found.items.tolist() == [[7, 1, 0], [3, 6, 2], [1, 4, 5]]
    assert found.lines == (f"{path}:1", f"{path}:3", f"{path}:4")
    assert slate_places(DATASET).nameable().tolist() == [2, 3, 4, 7, 8]


FINE = {"user": "ann", "item": "b", "items": ["h", "b", "a"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "bob"}, "user 'bob' is not in the data set"),
        ({"item": "z"}, "item 'z' is not in the catalogue"),
        ({"item": "f"}, r"item 'f' of user 'ann' is held out \(part test\): a slate for it would leak it"),
        ({"items": None}, "'items' must be a list of ids. A line is .*3 ids"),
        ({"items": "abc"}, "'items' must be a list of ids"),
        ({"items": ["a", "b", 1.5]}, "'items' must be a list of ids"),
        ({"items": ["a", "b"]}, "2 items, but slates have layout.length=3. .* or set it to 2"),
        ({"items": ["a", "b", "a"]}, "item 'a' stands in the slate more than once"),
        ({"items": ["a", "b", "z"]}, "item 'z' is not in the catalogue"),
        (
            {"items": ["a", "e", "f"]},
            "holds item 'e', which user 'ann' chose in a part that is held out: it would leak",
        ),
        ({"items": ["a", "b", "f"]}, "holds item 'f', which user 'ann'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_place(tmp_path, change, message):
    with pytest.raises(DataError, match=f"slates.jsonl:2: .*{message}"):
        read_slates(write_lines(tmp_path / "slates.jsonl", FINE, FINE | change), DATASET, 3)


def test_files_without_slates_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: no such file, given by activate.path"):
        read_slates(tmp_path / "none.jsonl", DATASET, 3)
    with pytest.raises(DataError, match=r"slates.jsonl: no slates. Write one per line: .*3 ids"):
        read_slates(write_lines(tmp_path / "slates.jsonl", ""), DATASET, 3)


def test_slates_outside_of_what_their_prompts_list_are_refused(tmp_path):
    found = read_slates(write_lines(tmp_path / "slates.jsonl", FINE, FINE), DATASET, 3)
    pools = torch.tensor([[0, 1, 2, 7], [7, 1, 2, -1]])
    found.check_pools(pools[:1].expand(2, -1))
    with pytest.raises(DataError, match=r"slates\.jsonl:2: 1 of the items are not in the candidate pool"):
        found.check_pools(pools)


def test_items_that_only_validation_and_test_hold(tmp_path):
    assert held_out_items(DATASET.sequences, torch.tensor([1, 8])).tolist() == [[4, 5], [6, -1]]
    assert held_out_items(DATASET.sequences, torch.empty(0, dtype=torch.int64)).shape == (0, 0)
