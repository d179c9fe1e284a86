"""What a run shows: its header, the closing tables, the curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from genrl.config.schema import RunConfig
from genrl.metrics.comparison import paired_difference
from genrl.metrics.functional import ndcg_at_k, recall_at_k
from genrl.metrics.ranking import TIES
from genrl.objectives import OBJECTIVES, Objective
from genrl.recommenders import BASELINES, TrainedBaseline
from genrl.runs.stages import supervised_stages

if TYPE_CHECKING:
    from genrl.catalog.dataset import Dataset
    from genrl.runs.session import Session

COLUMNS = {
    "recall": "R",
    "ndcg": "N",
    "entropy": "Ent",
    "cold_recall": "Cold",
    "coverage": "Cov",
}
"""Short heads of the tables, so that they fit a terminal of 80 columns."""
HIGH_RATE = 1e-3
"""Peak learning rate above which a supervised stage of a pre-trained policy is told of in the header."""
NAMES = {"most_popular": "most popular", "repeat_last": "repeat last", "item_knn": "item-kNN"}


def header(console: Console, session: Session, objective: Objective | None) -> None:
    """Say what is about to run; None stands for a baseline."""
    config, recommender = session.config, session.recommender
    kind, registry = ("objective", OBJECTIVES) if objective is not None else ("baseline", BASELINES)
    entry = registry.entry(getattr(config, kind)["name"])
    paper = f", {entry.paper}" if entry.paper else ""
    console.print(f"[bold]{entry.title}[/] ({entry.name}{paper}), experiment {config.experiment}, seed {config.seed}")
    describe_data(console, session.dataset)
    if objective is None:
        if config.trainer.precision == "bf16-true" and isinstance(recommender, TrainedBaseline):
            if recommender.backbone is None:
                console.print(f"{entry.name} holds its weights in float32: bf16-true is for language models.")
        return
    for line in session.table.report.lines():
        console.print(f"  {line}", highlight=False)
    console.print(f"policy {config.model.name}", highlight=False)
    if config.model.from_scratch and not supervised_stages(config):
        console.print("The policy starts from random weights: no stage before rl is asked for (stages=[align,rl]).")
    if not config.model.from_scratch:
        _tell_high_rates(console, config)
    console.print(repr(objective), highlight=False, markup=False)


def _tell_high_rates(console: Console, config: RunConfig) -> None:
    """Name the supervised stages of a pre-trained policy that have a learning rate of one trained from scratch."""
    for stage in supervised_stages(config):
        rate = getattr(config, stage).learning_rate
        if rate > HIGH_RATE:
            console.print(
                f"{stage}.learning_rate={rate:g} is one for weights that start at random; pre-trained ones usually "
                f"want less than {HIGH_RATE:g}.",
                highlight=False,
            )


def places(console: Console, paths: dict[str, Path]) -> None:
    """Say where things lie, a line each that is never broken, so that it can be copied."""
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    folder = next(iter(paths.values())).parent
    console.print(f"all curves of the experiment: tensorboard --logdir {folder}", highlight=False, soft_wrap=True)


def describe_data(console: Console, dataset: Dataset) -> None:
    """Say how large a data set is."""
    catalog, sequences = dataset.catalog, dataset.sequences
    console.print(
        f"data {dataset.name}: {len(sequences.user_ids):,} users, {len(catalog):,} items, "
        f"{len(sequences):,} interactions, {int(catalog.cold.sum()):,} cold items"
    )
    if dataset.ties:
        console.print(dataset.ties, highlight=False)


def with_ties(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a split with rows for tied and untied targets behind each model that was scored on them apart."""
    rows: dict[str, Any] = {}
    for name, value in results.items():
        rows[name] = value
        for part in TIES if isinstance(value, dict) else ():
            kinds = {kind: _part(scores, part) for kind, scores in value.items() if f"{part}_rows" in scores}
            rows |= {f"{name}, {part}": kinds} if kinds else {}
    return rows


def _part(scores: dict[str, float | None], part: str) -> dict[str, float | None]:
    """The metrics of one part of the targets under their own names; those that it does not have are null."""
    inside = {name.removeprefix(f"{part}_"): value for name, value in scores.items() if name.startswith(f"{part}_")}
    return dict.fromkeys(scores) | inside


def ranking_table(console: Console, split: str, results: dict[str, Any], k: list[int]) -> None:
    """Print the metrics of all ranking models on a split, raw and with the history excluded.

    A terminal too narrow for all cut-offs shows the largest ones; metrics.json holds all.
    """
    top = max(k)
    k = sorted(k)[-max(1, (console.width - 44) // 18) :]  # 17 for the name, 9 for each of 2 columns per cut-off and 3
    columns = [f"recall@{cut}" for cut in k] + [f"ndcg@{cut}" for cut in k]
    columns += [f"entropy@{top}", f"cold_recall@{top}", f"coverage@{top}"]
    for kind, title in (("raw", "raw ranking"), ("excluded", "history excluded")):
        scored = {name: value[kind] for name, value in results.items() if isinstance(value, dict) and kind in value}
        if not scored:
            continue
        first = next(iter(scored.values()))
        table = Table(
            title=f"{split}: {title}  ({first['rows']:.0f} users, {first['cold_rows']:.0f} with a cold target)"
        )
        table.add_column("", no_wrap=True)
        for column in columns:
            metric, cut = column.split("@")
            table.add_column(f"{COLUMNS[metric]}@{cut}", justify="right", no_wrap=True)
        for name, values in scored.items():
            cells = ["-" if values[column] is None else f"{values[column]:.4f}" for column in columns]
            table.add_row(NAMES.get(name, name), *cells)
        console.print(table)


def show(console: Console, metrics: dict[str, Any]) -> None:
    """Print the closing tables of a run."""
    k = sorted({int(name.split("@")[1]) for name in next(iter(metrics["test"].values()))["raw"] if "recall@" in name})
    for split in ("valid", "test"):
        scored = dict(metrics[split])
        if "rl" in scored:
            scored[f"rl ({metrics['objective']['name']})"] = scored.pop("rl")
        if "baseline" in scored:
            scored[metrics["baseline"]["name"]] = scored.pop("baseline")
        ranking_table(console, split, with_ties(scored), k)
    if "difference" in metrics:
        begun = "activate" if "activate" in metrics["stages"] else "align"
        table = Table(title=f"test: rl minus {begun}, paired over users (95% interval, Student's t)")
        for column in ("ranking", "metric", "difference", "low", "high"):
            table.add_column(column, justify="right")
        for kind, values in metrics["difference"].items():
            for name, (mean, low, high) in values.items():
                table.add_row(kind, name, f"{mean:+.4f}", f"{low:+.4f}", f"{high:+.4f}")
        console.print(table)
    table = Table(title="cost")
    for column in ("stage", "wall time", "peak memory", "best step"):
        table.add_column(column, justify="right")
    for name, stage in metrics["stages"].items():
        table.add_row(name, f"{stage['seconds']:.1f} s", f"{stage['peak_mib']:.0f} MiB", str(stage["best_step"]))
    console.print(table)


def paired_differences(before: Path, after: Path, k: list[int]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Test metrics of one run folder minus those of another on the same users.

    Returns:
        Kind of ranking -> metric -> the difference and the ends of its 95% interval, which covers the choice of users
        and not the seed (`genrl.metrics.paired_difference` with one seed).
    """
    old, new = load_file(before / "ranks.safetensors"), load_file(after / "ranks.safetensors")
    top = max(k)
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for kind in ("raw", "excluded"):
        found[kind] = {}
        for name, measure in ((f"recall@{top}", recall_at_k), (f"ndcg@{top}", ndcg_at_k)):
            one, two = (measure(ranks[f"test/{kind}"][:, None], top)[None] for ranks in (new, old))
            value = paired_difference(one, two)
            found[kind][name] = (round(value.effect, 6), round(value.low, 6), round(value.high, 6))
    return found


CURVES = (
    "train/reward",
    "val/ndcg@10",
    "val/recall@10",
    "policy/entropy",
    "policy/kl",
    "objective/dead_groups",
    "train/grad_norm",
    "val/entropy@10",
    "val/cold_recall@10",
)
"""Quantities that are drawn of a run."""


def curves(folder: Path, title: str) -> None:
    """Draw the run's learning curves into curves.png and TensorBoard."""
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    from genrl.plots import band, curve_grid, looks, read_notes, save

    notes = read_notes(folder)
    panels = {name: {title: band([notes[name]])} for name in CURVES if notes.get(name)}
    if not panels:
        return
    picture = folder / "curves.png"
    save(curve_grid(panels, looks([title]), title=title), picture)
    with SummaryWriter(str(folder)) as board:
        board.add_image("curves", imread(picture), dataformats="HWC")
