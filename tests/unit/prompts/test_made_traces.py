from dataclasses import replace

import pytest

from genrl.catalog import Dataset, Role, load_dataset
from genrl.config.schema import ActivateConfig, DataConfig, ToyConfig
from genrl.prompts.derived_traces import derived_traces
from genrl.prompts.made_traces import kind_of, make_traces
from genrl.prompts.teacher_traces import teacher_traces
from genrl.prompts.template_traces import template_traces
from genrl.sid import build_sid_table

DATA = DataConfig(toy=ToyConfig(world="hop", users=60))
HOP = load_dataset(DATA)
TABLE = build_sid_table({"name": "kmeans"}, HOP)
TRAIN = HOP.sequences.rows(Role.TRAIN)


def without_attributes() -> Dataset:
    catalog = replace(HOP.catalog, attributes={}, categories=HOP.catalog.categories * 0 - 1, category_names=())
    return replace(HOP, catalog=catalog)


def test_auto_takes_what_there_is():
    auto, files = ActivateConfig(), DataConfig(source="files")
    assert kind_of(auto, DATA, HOP) == "teacher"
    assert kind_of(auto, DataConfig(toy=ToyConfig(world="toy")), HOP) == "derived"
    assert kind_of(auto, files, HOP) == "derived"
    assert kind_of(auto, files, without_attributes()) == "template"
    assert kind_of(ActivateConfig(traces="evidence"), DATA, HOP) == "evidence"


@pytest.mark.parametrize("kind", ["derived", "evidence", "candidates"])
def test_each_kind_has_its_maker(kind):
    made = make_traces(ActivateConfig(traces=kind), DATA, HOP, TABLE, TRAIN[:9])
    assert made == derived_traces(HOP, TRAIN[:9], TRAIN, TABLE.levels, kind)


def test_the_teacher_has_the_errors_of_the_configuration_and_the_template_its_words():
    teacher = ActivateConfig(traces="teacher", teacher_wrong=0.5, teacher_often=0.7, seed=4)
    assert make_traces(teacher, DATA, HOP, TABLE, TRAIN) == teacher_traces(HOP, DATA.toy, TRAIN, 3, 0.5, 0.7, 4)
    template = ActivateConfig(traces="template", words=9)
    made = make_traces(template, DATA, HOP, TABLE, TRAIN[:9])
    assert made == template_traces(HOP, TABLE, TRAIN[:9], DATA.max_history, 9)
