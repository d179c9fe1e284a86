from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genrl.catalog.dataset import load_dataset
from genrl.config.schema import ActivateConfig, DataConfig, ToyConfig
from genrl.prompts.made_traces import kind_of


@pytest.mark.parametrize(
    ("traces", "world", "wanted"),
    [("auto", "hop", "teacher"), ("auto", "toy", "derived"), ("evidence", "hop", "evidence")],
)
def test_auto_takes_the_teacher_where_there_is_one_and_counts_elsewhere(traces: str, world: str, wanted: str) -> None:
    data = DataConfig(toy=ToyConfig(users=20, items=48, world=world))
    assert kind_of(ActivateConfig(traces=traces), data, load_dataset(data)) == wanted


def test_auto_describes_the_target_only_where_items_have_nothing_to_count() -> None:
    data = DataConfig(toy=ToyConfig(users=20, items=48, world="toy"))
    dataset = load_dataset(data)
    catalog = replace(dataset.catalog, categories=torch.full_like(dataset.catalog.categories, -1), attributes={})
    assert kind_of(ActivateConfig(), data, replace(dataset, catalog=catalog)) == "template"
