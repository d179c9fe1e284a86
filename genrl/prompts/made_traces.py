"""Traces that genrl makes itself, by name."""

from torch import Tensor

from genrl.catalog.dataset import Dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import ActivateConfig, DataConfig
from genrl.prompts.derived_traces import KINDS, attributes, derived_traces
from genrl.prompts.teacher_traces import teacher_traces
from genrl.prompts.template_traces import template_traces
from genrl.prompts.traces import Trace
from genrl.sid.table import SidTable


def make_traces(
    config: ActivateConfig, data: DataConfig, dataset: Dataset, table: SidTable, positions: Tensor
) -> list[Trace]:
    """Traces for training positions [P], as `activate.traces` says."""
    kind = kind_of(config, data, dataset)
    if kind == "teacher":
        errors = config.teacher_wrong, config.teacher_often, config.seed
        return teacher_traces(dataset, data.toy, positions, table.levels, *errors)
    if kind == "template":
        return template_traces(dataset, table, positions, data.max_history, config.words)
    counted = next(each for each in KINDS if each == kind)
    return derived_traces(dataset, positions, dataset.sequences.rows(Role.TRAIN), table.levels, counted)


def kind_of(config: ActivateConfig, data: DataConfig, dataset: Dataset) -> str:
    """What `activate.traces` is, `auto` being decided."""
    if config.traces != "auto":
        return config.traces
    if data.source == "toy" and data.toy.world == "hop":
        return "teacher"
    return "derived" if attributes(dataset.catalog) else "template"
