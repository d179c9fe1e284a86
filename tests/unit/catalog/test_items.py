import pytest
import torch

from genrl.catalog import Catalog, cold_items
from genrl.errors import ConfigError, DataError
from tests.helpers import assert_same


def test_categories_are_numbered_by_name_and_unknown_is_minus_one():
    catalog = Catalog.from_table(["a", "b", "c", "d"], categories=["Tea", None, "Pans", "Tea"])
    assert catalog.category_names == ("Pans", "Tea")
    assert_same(catalog.categories, [1, -1, 0, 1])


def test_another_column_is_numbered_as_categories_are():
    catalog = Catalog.from_table(["a", "b", "c"], categories=["x", "x", "y"], attributes={"shelf": ["Tea", "", "Pans"]})
    assert_same(catalog.level(None), [0, 0, 1])
    assert_same(catalog.level("shelf"), [1, -1, 0])
    with pytest.raises(ConfigError, match=r"no item column 'shelv'. Did you mean 'shelf'\? Kept: shelf. Name it in"):
        catalog.level("shelv")


def test_row_of_an_unknown_item_names_the_closest_id():
    with pytest.raises(DataError, match=r"'B0011'.*2 items.*Did you mean 'B001'"):
        Catalog.from_table(["B001", "X9"]).row("B0011")


NAMED = Catalog.from_table(["b7", "b9", "c1", "c2"], ["Red soap", "b7", "Blue soap", "Red soap"])


@pytest.mark.parametrize(("text", "row"), [("b7", 0), ("b9", 1), (" Blue soap ", 2), ("c2", 3)])
def test_a_name_is_an_id_first_and_then_a_whole_title(text, row):
    assert NAMED.row_of(text) == row


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Red soap", r"title 'Red soap' is shared by 2 items: 'b7' \(Red soap\), 'c2' \(Red soap\)\. Give an id"),
        ("Red soup", r"neither an id nor a title.*4 items.*Close to it: 'b7' \(Red soap\), 'c2' \(Red soap\)"),
        ("red", r"'red' is neither an id nor a title of the catalogue \(4 items\)\. Give an item id"),
        ("", r"'' is neither an id nor a title"),
    ],
)
def test_a_name_that_is_not_one_item_is_refused_with_candidates(text, said):
    with pytest.raises(DataError, match=said):
        NAMED.row_of(text)


def test_duplicate_ids_and_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="'a' twice"):
        Catalog.from_table(["a", "b", "a"])
    with pytest.raises(ValueError, match="2 ids, 1 titles"):
        Catalog.from_table(["a", "b"], titles=["only one"])
    with pytest.raises(ValueError, match="2 ids and 1 values of attribute 'brand'"):
        Catalog.from_table(["a", "b"], attributes={"brand": ["Elm"]})


@pytest.mark.parametrize(
    "change",
    [
        {"item_ids": ["a", "x"]},
        {"titles": ["one", "other"]},
        {"categories": ["Tea", "Pans"]},
        {"categories": ["Tea", None]},
        {"item_ids": ["b", "a"]},
        {"titles": ["onetwo", ""]},
        {"texts": ["one Acme", "two"]},
    ],
)
def test_the_fingerprint_sees_every_identifying_change_and_nothing_else(change):
    base = {"item_ids": ["a", "b"], "titles": ["one", "two"], "categories": ["Tea", "Tea"]}
    assert Catalog.from_table(**base).fingerprint != Catalog.from_table(**{**base, **change}).fingerprint
    counted = Catalog.from_table(["a", "b"], ["one", "two"], ["Tea", None], train_counts=torch.tensor([3, 4]))
    assert counted.fingerprint == "1603599f94a062b5"  # the same in every process


RISING = torch.arange(40, 0, -1)


@pytest.mark.parametrize(
    ("counts", "share", "rule", "rows"),
    [
        ([4, 1, 1, 1, 9], 0.4, "rank", [1, 2]),  # ties by row
        ([4, 1, 1, 1, 9], 0.4, "percentile_value", [1, 2, 3]),  # all ties
        (RISING, 0.05, "rank", [38, 39]),  # methods.md, section 16: the bottom 5 % are the items with counts 1 and 2
        (RISING, 0.05, "percentile_value", [38, 39]),
        ([0, 0, 3], 0.0, "rank", []),
        ([0, 0, 3], 0.0, "percentile_value", []),
        ([0, 0, 3], 1.0, "rank", [0, 1, 2]),
        ([0, 0, 3], 1.0, "percentile_value", [0, 1, 2]),
        ([0] * 7, 0.07, "rank", [0]),  # the share is rounded up
        ([0] * 100, 0.07, "rank", range(7)),  # whatever 0.07 is in binary
        ([0] * 12101, 0.07, "rank", range(848)),
    ],
)
def test_cold_items_are_the_share_with_the_fewest_interactions(counts, share, rule, rows):
    assert cold_items(torch.as_tensor(counts), share, rule).nonzero().flatten().tolist() == list(rows)
