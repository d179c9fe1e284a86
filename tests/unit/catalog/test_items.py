import math

import pytest
import torch

from genrl.catalog import Catalog, cold_items
from genrl.errors import DataError
from tests.helpers import assert_same


def test_categories_are_numbered_by_name_and_unknown_is_minus_one():
    catalog = Catalog.from_table(["a", "b", "c", "d"], categories=["Tea", None, "Pans", "Tea"])
    assert catalog.category_names == ("Pans", "Tea")
    assert_same(catalog.categories, [1, -1, 0, 1])


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


def test_duplicate_ids_are_refused():
    with pytest.raises(DataError, match="'a' twice"):
        Catalog.from_table(["a", "b", "a"])


def test_columns_of_unequal_length_are_refused():
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
def test_the_fingerprint_sees_every_identifying_change(change):
    base = {"item_ids": ["a", "b"], "titles": ["one", "two"], "categories": ["Tea", "Tea"]}
    assert Catalog.from_table(**base).fingerprint != Catalog.from_table(**{**base, **change}).fingerprint


def test_the_fingerprint_is_the_same_in_every_process():
    catalog = Catalog.from_table(["a", "b"], ["one", "two"], ["Tea", None], train_counts=torch.tensor([3, 4]))
    assert catalog.fingerprint == "1603599f94a062b5"
    assert Catalog.from_table(["a", "b"], ["one", "two"], ["Tea", None]).fingerprint == catalog.fingerprint


@pytest.mark.parametrize(("rule", "rows"), [("rank", [1, 2]), ("percentile_value", [1, 2, 3])])
def test_cold_by_rank_takes_the_share_with_ties_by_row_and_by_percentile_all_ties(rule, rows):
    assert_same(cold_items(torch.tensor([4, 1, 1, 1, 9]), 0.4, rule).nonzero().flatten(), rows)


@pytest.mark.parametrize("rule", ["rank", "percentile_value"])
def test_cold_of_forty_items_with_counts_one_to_forty(rule):
    """methods.md, section 16: the bottom 5 % are the items with counts 1 and 2."""
    cold = cold_items(torch.arange(40, 0, -1), 0.05, rule)
    assert_same(cold.nonzero().flatten(), [38, 39])


@pytest.mark.parametrize("rule", ["rank", "percentile_value"])
def test_no_share_no_cold_items(rule):
    assert not cold_items(torch.tensor([0, 0, 3]), 0.0, rule).any()
    assert cold_items(torch.tensor([0, 0, 3]), 1.0, rule).all()


@pytest.mark.parametrize("items", [7, 100, 12101])
def test_the_cold_share_is_rounded_up(items):
    assert int(cold_items(torch.zeros(items, dtype=torch.int64), 0.07).sum()) == math.ceil(round(0.07 * items, 6))
