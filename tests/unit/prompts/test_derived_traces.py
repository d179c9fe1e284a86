import pytest
import torch

from genrl.catalog import Catalog, Dataset, Role, Sequences, load_dataset
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import DataError
from genrl.prompts.derived_traces import Clue, derived_traces, mine
from genrl.prompts.template_traces import template_traces
from genrl.prompts.traces import Trace, read_off
from genrl.sid import build_sid_table

SHAPES, SIZES = ("ball", "cube", "cone"), ("big", "small")


def little(users: int, attributes: bool = True) -> Dataset:
    """The next item is the next shape; it is big if the item before the latest was small."""
    looks = [(shape, size) for shape in range(3) for size in range(2)]
    items, length = [], 8
    for user in range(users):
        generator = torch.Generator().manual_seed(user)
        walk = [tuple(torch.randint(0, n, (2, 2), generator=generator)[0].tolist()) for n in (2, 2)]
        while len(walk) < length:
            walk.append(((walk[-1][0] + 1) % 3, 1 - walk[-2][1]))
        items += [looks.index(look) for look in walk]
    names = [SHAPES[shape] for shape, _ in looks], [SIZES[size] for _, size in looks]
    catalog = Catalog.from_table(
        [f"i{row}" for row in range(6)],
        categories=names[0] if attributes else None,
        attributes={"size": names[1]} if attributes else None,
    )
    roles = torch.tensor(([Role.HISTORY] * 2 + [Role.TRAIN] * (length - 2)) * users, dtype=torch.uint8)
    offsets = torch.arange(users + 1) * length
    sequences = Sequences(torch.tensor(items), roles, torch.arange(len(items)), offsets, tuple(map(str, range(users))))
    return Dataset(catalog, sequences, "little")


def test_what_each_attribute_follows_from_is_found_by_counting():
    dataset = little(40)
    found = {one.attribute: one for one in mine(dataset, train_of(dataset))}
    assert found["category"].clues == (Clue("category", 1),)
    assert found["size"].clues == (Clue("size", 2),)
    assert found["category"].right == found["size"].right == 1 > found["category"].usual


def test_the_rule_of_the_toy_is_recovered():
    dataset = load_dataset(DataConfig(toy=ToyConfig(world="toy")))
    found = {one.attribute: one.clues for one in mine(dataset, train_of(dataset))}
    assert found == {
        "category": (Clue("category", 1), Clue("colour", 2)),
        "colour": (Clue("colour", 1), Clue("kind", 2)),
        "kind": (Clue("kind", 1), Clue("colour", 2)),
    }


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [("derived", ("{0} {1}", "{2} {3}")), ("evidence", ("{0}", "{2}")), ("candidates", ("{1} {4}", "{3} {5}"))],
)
def test_a_trace_says_clues_and_what_mostly_follows_them(kind, blocks):
    dataset = little(40)
    train = train_of(dataset)
    places = torch.tensor([5, 13, 30])  # far enough from the start of their users
    catalog, items = dataset.catalog, dataset.sequences.items
    for place, trace in zip(places.tolist(), derived_traces(dataset, places, train, 2, kind), strict=True):
        history = items[place - place % 8 : place].tolist()
        shapes = [catalog.category_names[catalog.categories[row]] for row in history]
        sizes = [catalog.attributes["size"][row] for row in history]
        says = shapes[-1], SHAPES[(SHAPES.index(shapes[-1]) + 1) % 3], sizes[-2], SIZES[1 - SIZES.index(sizes[-2])]
        usual = [max(sorted(set(seen)), key=seen.count) for seen in (shapes, sizes)]
        assert trace == Trace(place, tuple(block.format(*says, *usual) for block in blocks))


def test_a_trace_does_not_count_its_own_target():
    dataset, changed, place = little(40), little(40), torch.tensor([5])
    changed.sequences.items[5] = (int(changed.sequences.items[5]) + 3) % 6
    assert derived_traces(changed, place, train_of(changed), 2) == derived_traces(dataset, place, train_of(dataset), 2)


def train_of(dataset: Dataset) -> torch.Tensor:
    return dataset.sequences.rows(Role.TRAIN)


def test_items_without_attributes_have_nothing_to_derive():
    dataset = little(4, attributes=False)
    with pytest.raises(DataError, match=r"items have: no category and no attributes.*activate\.traces=template"):
        derived_traces(dataset, torch.tensor([5]), train_of(dataset), 2)


def test_traces_that_describe_the_target_are_told_from_those_that_follow_from_the_history():
    dataset = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=400)))
    train, items = train_of(dataset), dataset.sequences.items
    table = build_sid_table({"name": "kmeans"}, dataset)
    words, share = read_off(template_traces(dataset, table, train, 20, 4), items)
    assert share > 0.9
    assert words
    for kind in ("derived", "evidence", "candidates"):
        assert read_off(derived_traces(dataset, train, train, 3, kind), items) == ((), 0.0)
