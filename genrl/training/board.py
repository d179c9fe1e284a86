"""What TensorBoard shows beside the curves of single runs: a table of runs, bands over seeds, and texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
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
from genrl.training import comparison_table
from genrl.training.comparison_curves import MATCH, TRAINING, Notes, band

SECTIONS = {
    "baseline": ("baseline",),
    "rl": ("objective", "rewards", "rollout", "rl", "align", "layout", "model", "sid"),
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
"""Kind of ranking -> how it is told from the other one in a tag."""
TEXT = "comparison"
"""Tag of all texts of a comparison; it comes before those of the runs."""
CURVES = ("mean", "low", "high")
BANDS = "over_seeds"
"""Group of the tags with bands, so that they stand apart from the curves of runs."""
OUTCOME = ".outcome"
COMPARISON = ".comparison"
"""Ends of the names of event files, by which a later call finds what an earlier one left."""


def write_outcome(folder: Path, config: RunConfig, metrics: Mapping[str, Any]) -> None:
    """Write a finished run's hyperparameters and final metrics, a row of the table in the HParams tab.

    Which hyperparameters the runs of an experiment have is left for TensorBoard to find: of several lists of columns
    it would take the first, and the objectives have different options.

    Args:
        folder: of the run; what an earlier call wrote there is replaced.
        config: of the run.
        metrics: as in metrics.json.
    """
    stage = next(stage for stage in SECTIONS if stage in metrics["stages"])
    start, end = SessionStartInfo(), SessionEndInfo(status=STATUS_SUCCESS)
    for name, value in hyperparameters(config, SECTIONS[stage]).items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(start.hparams[name], kind, value)
    _remove(folder, OUTCOME)
    with SummaryWriter(str(folder), filename_suffix=OUTCOME) as writer:
        add = writer.file_writer.add_summary
        add(_session(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))
        for name, value in final_metrics(metrics, stage, max(config.evaluate.k)).items():
            writer.add_scalar(name, value, 0)
        add(_session(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))


def hyperparameters(config: RunConfig, sections: Sequence[str]) -> dict[str, bool | float | str]:
    """The seed and the options of some sections under the names that the command line has for them.

    Options that are null are left out; lists become texts; the name of a component stands under that of its slot.

    Example:
        >>> hyperparameters(RunConfig(), ["layout", "rewards"])
        {'seed': 0, 'layout': 'sid', 'rewards.exact_match.weight': 1.0, 'rewards.level_match.weight': 1.0}
    """
    values = asdict(config)
    return {"seed": config.seed, **dict(pair for section in sections for pair in _flat(values[section], section))}


def final_metrics(metrics: Mapping[str, Any], stage: str, top: int) -> dict[str, float]:
    """What a stage scored at cut-off `top`: tag -> value; a metric without rows is left out.

    Args:
        metrics: as in metrics.json.
        stage: `rl`, `align` or `baseline`.
        top: K.
    """
    found: dict[str, float | None] = {}
    for split in ("test", "valid"):
        for kind, written in RANKINGS.items():
            scores = metrics[split][stage][kind]
            found |= {f"final/{split}{written}/{name}@{top}": scores[f"{name}@{top}"] for name in METRICS}
    return {name: value for name, value in found.items() if value is not None}


def write_comparison(folder: Path, notes: Mapping[str, Sequence[Notes]], report: Mapping[str, Any]) -> None:
    """Write the pages of a comparison: charts with a band over seeds for every row, and texts.

    Each row is a run `comparison/<row>` of its own to TensorBoard, so that it has one colour in all charts.

    Args:
        folder: of the experiment; what an earlier call left in its `comparison` is replaced.
        notes: row -> what its runs noted, one per seed.
        report: as in report.json.
    """
    place = folder / "comparison"
    _remove(place, COMPARISON)
    with SummaryWriter(str(place), filename_suffix=COMPARISON) as writer:
        charts = layout({name for runs in notes.values() for run in runs for name in run})
        if charts:
            writer.add_custom_scalars(charts)
        text = comparison_table.markdown(report)
        writer.add_text(TEXT, "\n".join(line for line in text.splitlines() if not line.startswith("![")))
    for row, facts in report["rows"].items():
        with SummaryWriter(str(place / row), filename_suffix=COMPARISON) as writer:
            writer.add_text(TEXT, "\n\n".join(_description(facts)))
            for step, values in _bands(notes.get(row, ())):
                writer.file_writer.add_summary(values, step)


def layout(noted: Collection[str]) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """The page of custom scalars: category -> title of a chart -> its kind and tags; as `add_custom_scalars` wants it.

    Args:
        noted: quantities that some run noted; others have no chart.

    Example:
        >>> layout(["policy/kl", "time/update"])["policy"]["KL from the reference policy, nats"]
        ('Margin', ['over_seeds/policy/kl/mean', 'over_seeds/policy/kl/low', 'over_seeds/policy/kl/high'])
    """
    return {
        # TensorBoard shows charts of this kind in the opposite order.
        category: {
            title: ("Margin", [_tag(name, curve) for curve in CURVES]) for name, title in reversed(charts.items())
        }
        for category, charts in _charts(noted).items()
        if charts
    }


def _charts(noted: Collection[str]) -> dict[str, dict[str, str]]:
    """Category -> quantity -> title."""
    cut = max((int(name.partition("@")[2]) for name in noted if name.startswith("val/ndcg@")), default=0)
    rewards = sorted(name for name in noted if name.startswith("train/reward"))
    matches = sorted((name for name in noted if name.startswith(MATCH)), key=lambda name: int(name[len(MATCH) :]))
    return {
        "validation": {
            f"val/{metric}@{cut}": title.format(cut)
            for metric, title in METRICS.items()
            if f"val/{metric}@{cut}" in noted
        },
        "reward": {name: name.removeprefix("train/") for name in rewards},
        "match with the target": {name: f"step {name[len(MATCH) :]}" for name in matches},
        "policy": {name: title for name, title in TRAINING.items() if name in noted},
    }


def _bands(runs: Sequence[Notes]) -> list[tuple[int, Summary]]:
    """By step, the mean, least and largest value over seeds of everything that has a chart."""
    found: dict[int, list[Summary.Value]] = defaultdict(list)
    for charts in _charts({name for run in runs for name in run}).values():
        for name in charts:
            for step, *values in band([run[name] for run in runs if name in run]):
                found[step] += [
                    Summary.Value(tag=_tag(name, curve), simple_value=value)
                    for curve, value in zip(CURVES, values, strict=True)
                ]
    return [(step, Summary(value=values)) for step, values in sorted(found.items())]


def _tag(name: str, curve: str) -> str:
    return f"{BANDS}/{name}/{curve}"


def _description(facts: Mapping[str, Any]) -> Iterator[str]:
    """What a row is, as Markdown."""
    yield f"**{facts['title'] or facts['name']}** {facts['paper']}"
    if "pieces" in facts:
        yield f"```\n{facts['pieces']}\n```"
    options = {facts["kind"]: {"name": facts["name"], **facts["options"]}}
    options |= {"rewards": facts["rewards"]} if "rewards" in facts else {}
    yield f"```\n{OmegaConf.to_yaml(OmegaConf.create(options))}```"


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


def _remove(folder: Path, suffix: str) -> None:
    """Remove event files with a suffix, and the folders that hold nothing else."""
    for path in sorted(folder.rglob(f"events.out.tfevents.*{suffix}"), reverse=True):
        path.unlink(missing_ok=True)
        if path.parent != folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
