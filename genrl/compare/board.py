"""What TensorBoard shows of a comparison: charts with a band over seeds for every row, and texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from genrl.compare.page import markdown
from genrl.compare.quantities import MATCH, TRAINING, matches
from genrl.compare.record import Report, Row
from genrl.plots import Notes, band
from genrl.training.board import METRICS, remove_events

TEXT = "comparison"
"""Tag of all texts of a comparison; it comes before those of the runs."""
CURVES = ("mean", "low", "high")
BANDS = "over_seeds"
"""Group of the tags with bands, so that they stand apart from the curves of runs."""
COMPARISON = ".comparison"
"""End of the names of event files, by which a later call finds what an earlier one left."""


def write_comparison(folder: Path, notes: Mapping[str, Sequence[Notes]], report: Report) -> None:
    """Write the pages of a comparison: charts with a band over seeds for every row, and texts.

    Each row is a run `comparison/<row>` of its own to TensorBoard, so that it has one colour in all charts. What an
    earlier call left in the folder of the experiment is replaced.
    """
    place = folder / "comparison"
    remove_events(place, COMPARISON)
    with SummaryWriter(str(place), filename_suffix=COMPARISON) as writer:
        charts = layout({name for runs in notes.values() for run in runs for name in run})
        if charts:
            writer.add_custom_scalars(charts)
        text = markdown(report)
        writer.add_text(TEXT, "\n".join(line for line in text.splitlines() if not line.startswith("![")))
    for row, facts in report.rows.items():
        with SummaryWriter(str(place / row), filename_suffix=COMPARISON) as writer:
            writer.add_text(TEXT, _description(facts))
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
    return {
        "validation": {
            f"val/{metric}@{cut}": title.format(cut)
            for metric, title in METRICS.items()
            if f"val/{metric}@{cut}" in noted
        },
        "reward": {name: name.removeprefix("train/") for name in rewards},
        "match with the target": {name: f"step {name[len(MATCH) :]}" for name in matches(noted)},
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


def _description(facts: Row) -> str:
    """What a row is, as Markdown."""
    options = {facts.kind: {"name": facts.name, **facts.options}}
    options |= {} if facts.rewards is None else {"rewards": facts.rewards}
    parts = [f"**{facts.title or facts.name}** {facts.paper}"]
    parts += [] if facts.pieces is None else [f"```\n{facts.pieces}\n```"]
    return "\n\n".join([*parts, f"```\n{OmegaConf.to_yaml(OmegaConf.create(options))}```"])
