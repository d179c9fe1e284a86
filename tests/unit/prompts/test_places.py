from dataclasses import replace

import pytest

from genrl.catalog.dataset import Dataset
from genrl.catalog.items import Catalog
from genrl.catalog.sequences import Role
from genrl.errors import DataError
from genrl.prompts.places import Places, record_of
from tests.unit.recommenders.problems import dataset_of

ACTIONS = dataset_of([[0, 1, 2, 1, 3, 4, 5], [0, 1, 1]], ["htttrve", "trr"], size=6)
DATASET = Dataset(Catalog.from_table(list("abcdef")), replace(ACTIONS.sequences, user_ids=("ann", "7")), "shop")


@pytest.mark.parametrize(
    ("roles", "nameable"), [((Role.TRAIN,), [2, 3, 7]), ((Role.TRAIN, Role.RL), [2, 3, 4, 7, 9]), ((Role.TEST,), [6])]
)
def test_every_nameable_position_is_the_one_that_its_user_and_item_name(roles, nameable):
    places, sequences = Places(DATASET, roles, "slate"), DATASET.sequences
    positions = places.nameable()
    assert positions.tolist() == nameable
    for position in positions:
        user = sequences.user_ids[int(sequences.users(position[None]))]
        record = {"user": user, "item": DATASET.catalog.item_ids[int(sequences.items[position])]}
        assert places(record) == int(position)


@pytest.mark.parametrize(
    ("user", "item", "message"),
    [
        ("anna", "b", r"user 'anna' is not in the data set \(2 users\)\. Did you mean 'ann'"),
        ("ann", "e", r"item 'e' of user 'ann' is held out \(part valid\): a slate for it would leak it"),
        ("ann", "a", r"is only shown as history, never a target\. Slates are for training positions"),
        (7, "d", r"item 'd' of user '7' is not in the user's history\. Slates are for training positions"),
    ],
)
def test_what_names_no_place_is_said(user, item, message):
    with pytest.raises(DataError, match=message):
        Places(DATASET, (Role.TRAIN, Role.RL), "slate")({"user": user, "item": item})


def test_records_say_how_they_are_written():
    for line, message in (
        ("{", "not JSON"),
        ("[" * 9999, "nests too deep"),
        ("[]", "a list"),
        ('{"user": true, "item": "x"}', "'user' is True"),
    ):
        with pytest.raises(DataError, match=f"{message}.* A line is FORM"):
            record_of(line, "FORM")
