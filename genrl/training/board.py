"""What TensorBoard shows of a finished run beside its curves: a row in the table of runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.metadata import (
    NULL_TENSOR,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    create_summary_metadata,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from genrl.config import RunConfig
from genrl.config.select import main_cut

SECTIONS = {
    "baseline": ("baseline",),
    "rl": ("objective", "rewards", "rollout", "rl", "align", "layout", "model", "sid"),
    "activate": ("activate", "align", "layout", "model", "sid"),
    "align": ("align", "layout", "model", "sid"),
}
"""Stage that a run ends with -> sections of its configuration that stand in the table of runs."""
METRICS = {
    "ndcg": "NDCG@{}",
    "recall": "recall@{}",
    "cold_recall": "recall@{} of cold targets",
    "entropy": "entropy@{}, bits",
    "coverage": "coverage@{}",
}
"""Final metrics -> titles of their validation charts."""
RANKINGS = {"raw": "", "excluded": "_history_excluded"}
"""Kind of ranking -> how a tag marks it."""
OUTCOME = ".outcome"
"""End of the name of the event file, by which a later call finds what an earlier one left."""


def write_outcome(folder: Path, config: RunConfig, metrics: Mapping[str, Any]) -> None:
    """Write a finished run's hyperparameters and final metrics, a row of the table in the HParams tab.

    Which hyperparameters the runs of an experiment have is left for TensorBoard to find: of several lists of columns
    it would take the first, and the objectives have different options. What an earlier call wrote is replaced.
    """
    stage = next(stage for stage in SECTIONS if stage in metrics["stages"])
    start, end = SessionStartInfo(), SessionEndInfo(status=STATUS_SUCCESS)
    for name, value in hyperparameters(config, SECTIONS[stage]).items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(start.hparams[name], kind, value)
    remove_events(folder, OUTCOME)
    with SummaryWriter(str(folder), filename_suffix=OUTCOME) as writer:
        add = writer.file_writer.add_summary
        add(_session(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))
        for name, value in final_metrics(metrics, stage, main_cut(config.evaluate.k)).items():
            writer.add_scalar(name, value, 0)
        add(_session(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))


def hyperparameters(config: RunConfig, sections: Sequence[str]) -> dict[str, bool | float | str]:
    """The seed and the options of some sections under the names that the command line has for them.

    Options that are null are left out; lists become texts; the name of a component stands under that of its slot.

    Example:
        >>> hyperparameters(RunConfig(layout={"name": "sid"}), ["layout", "rewards"])
        {'seed': 0, 'layout': 'sid', 'rewards.exact_match.weight': 1.0, 'rewards.level_match.weight': 1.0}
    """
    values = asdict(config)
    return {"seed": config.seed, **dict(pair for section in sections for pair in _flat(values[section], section))}


def final_metrics(metrics: Mapping[str, Any], stage: str, top: int) -> dict[str, float]:
    """What a stage scored at cut-off `top`: tag -> value; a metric without rows is left out."""
    found: dict[str, float | None] = {}
    for split in ("test", "valid"):
        for kind, written in RANKINGS.items():
            scores = metrics[split][stage][kind]
            found |= {f"final/{split}{written}/{name}@{top}": scores[f"{name}@{top}"] for name in METRICS}
    return {name: value for name, value in found.items() if value is not None}


def _flat(value: Any, name: str) -> Iterator[tuple[str, bool | float | str]]:  # noqa: ANN401 (nested plain values)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, name if key == "name" else f"{name}.{key}")
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, value


def _session(tag: str, data: HParamsPluginData) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)])


def remove_events(folder: Path, suffix: str) -> None:
    """Remove event files with a suffix, and the folders that hold nothing else."""
    for path in sorted(folder.rglob(f"events.out.tfevents.*{suffix}"), reverse=True):
        path.unlink(missing_ok=True)
        if path.parent != folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
