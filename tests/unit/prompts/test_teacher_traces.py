import pytest
import torch

from genrl.catalog import Role, load_dataset
from genrl.catalog.toy import COLOURS, KINDS, LEAVES, draw_world
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError
from genrl.prompts.teacher_traces import teacher_traces

CONFIG = ToyConfig(world="hop", users=40, seed=2)
HOP = load_dataset(DataConfig(toy=CONFIG, k_core=2))
TRAIN = HOP.sequences.rows(Role.TRAIN)


def look(row: int) -> tuple[str, str, str]:
    catalog = HOP.catalog
    return (
        catalog.category_names[catalog.categories[row]],
        catalog.attributes["colour"][row],
        catalog.attributes["kind"][row],
    )


def test_a_trace_says_the_chain_step_by_step_from_the_history_alone():
    rule, traces = draw_world(CONFIG).rule, teacher_traces(HOP, CONFIG, TRAIN, levels=3)
    leaves = [leaf for _, leaf, _ in LEAVES]
    assert [trace.position for trace in traces] == [
        position for position in TRAIN.tolist() if (HOP.sequences.histories(torch.tensor([position]), 4) >= 0).all()
    ]
    for trace in traces[::29]:
        one, two, three, four = (look(int(HOP.sequences.items[trace.position - back])) for back in (1, 2, 3, 4))
        first = rule.mix[COLOURS.index(one[1]), COLOURS.index(two[1])]
        second = rule.mix[first, COLOURS.index(three[1])]
        third = rule.mix[second, COLOURS.index(four[1])]
        said = [one[1], two[1], COLOURS[first], three[1], COLOURS[second], four[1], COLOURS[third]]
        leaf = leaves[rule.next_leaf[KINDS.index(one[2]), third]]
        colour = COLOURS[rule.next_colour[KINDS.index(two[2]), third]]
        kind = KINDS[rule.next_kind[KINDS.index(three[2]), third]]
        assert trace.blocks == (" ".join([*said, leaf]), colour, kind)


def test_a_teacher_errs_as_often_as_is_asked_for():
    right = teacher_traces(HOP, CONFIG, TRAIN, 3)
    always, half = (teacher_traces(HOP, CONFIG, TRAIN, 3, wrong=1.0, often=often, seed=1) for often in (1.0, 0.5))
    assert all(one.blocks[0].split()[2] != two.blocks[0].split()[2] for one, two in zip(right, always, strict=True))
    firsts = [[trace.blocks[0].split()[2] for trace in traces] for traces in (right, half)]
    share = sum(one != two for one, two in zip(*firsts, strict=True)) / len(right)
    assert 0.4 < share < 0.6
    assert half == teacher_traces(HOP, CONFIG, TRAIN, 3, wrong=1.0, often=0.5, seed=1)


def test_a_world_without_a_chain_has_no_teacher():
    with pytest.raises(ConfigError, match=r"needs data\.toy\.world=hop, not toy"):
        teacher_traces(HOP, ToyConfig(world="toy"), TRAIN, 3)
