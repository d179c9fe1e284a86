"""What a run shows: its header, the closing tables, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from genrl.catalog import pools
from genrl.catalog.sequences import DAY
from genrl.config.schema import PoolConfig, RunConfig
from genrl.config.select import main_cut
from genrl.metrics.comparison import paired_difference, signed
from genrl.metrics.functional import ndcg_at_k, recall_at_k
from genrl.metrics.ranking import TIES
from genrl.objectives import OBJECTIVES, Objective
from genrl.recommenders import BASELINES, TrainedBaseline
from genrl.runs.stages import supervised_stages
from genrl.terminal import safe, verbatim

if TYPE_CHECKING:
    from genrl.catalog.dataset import Dataset
    from genrl.runs.session import Session

COLUMNS = {"ndcg": "N", "recall": "R", "mrr": "MRR", "cold_recall": "Cold", "coverage": "Cov", "entropy": "Ent"}
"""Short heads of the tables."""
HIGH_RATE = 1e-3
"""Peak learning rate above which a supervised stage of a pre-trained policy is told of in the header."""
KINDS = {"excluded": "history excluded", "raw": "raw ranking"}
"""Of rankings, those that the closing words are about first."""
DEFINITIONS = {
    "cold_recall": "recall of the {cold} users whose target is a cold item, one of those with the fewest training "
    "interactions (data.cold_fraction, data.cold_rule)",
    "coverage": "share of the catalogue that the lists of all users hold together",
    "entropy": "entropy of the categories in each list, to base 2 (bits), mean over the lists that have some",
}
"""Of columns that do not explain themselves; `definition` fills in the numbers."""
NAMES = {"most_popular": "most popular", "repeat_last": "repeat last", "item_knn": "item-kNN"}


def header(console: Console, session: Session, objective: Objective | None) -> None:
    """Say what is about to run; None stands for a baseline."""
    config, recommender = session.config, session.recommender
    kind, registry = ("objective", OBJECTIVES) if objective is not None else ("baseline", BASELINES)
    entry = registry.entry(getattr(config, kind)["name"])
    paper = f", {entry.paper}" if entry.paper else ""
    about = verbatim(f" ({entry.name}{paper}), experiment {config.experiment}, seed {config.seed}")
    console.print(verbatim(entry.title, "bold") + about)
    describe_data(console, session.dataset, config.data.pool)
    if objective is None:
        own = isinstance(recommender, TrainedBaseline) and recommender.backbone is None
        if own and config.trainer.precision == "bf16-true":
            console.print(verbatim(f"{entry.name} holds its weights in float32: bf16-true is for language models."))
        return
    for line in (*session.table.report.lines(), *session.layout.told()):
        console.print(verbatim(f"  {line}"))
    console.print(verbatim(f"policy {config.model.name}"))
    prior = session.learner.prior
    if prior is not None:
        told = f"prior {prior.name} ({config.prior.run}), weight {config.prior.weight:g}"
        console.print(verbatim(told), soft_wrap=True)
    if config.model.from_scratch and not supervised_stages(config):
        console.print("The policy starts from random weights: no stage before rl is asked for (stages=[align,rl]).")
    if not config.model.from_scratch:
        _tell_high_rates(console, config)
    console.print(*map(verbatim, repr(objective).splitlines()), sep="\n")
    if "rl" in config.stages:
        for notice in objective.notices(config.rollout.epochs * config.rollout.minibatches, session.layout.in_words):
            console.print(verbatim(notice))


def _tell_high_rates(console: Console, config: RunConfig) -> None:
    """Name the supervised stages of a pre-trained policy that have a learning rate of one trained from scratch."""
    for stage in supervised_stages(config):
        rate = getattr(config, stage).learning_rate
        if rate > HIGH_RATE:
            told = (
                f"{stage}.learning_rate={rate:g} is one for weights that start at random; pre-trained ones usually "
                f"want less than {HIGH_RATE:g}."
            )
            console.print(verbatim(told))


def places(console: Console, paths: dict[str, Path]) -> None:
    """Say where things lie, a line each that is never broken, so that it can be copied."""
    for name, path in paths.items():
        console.print(verbatim(f"{name}: {path}"), soft_wrap=True)
    folder = next(iter(paths.values())).parent
    console.print(verbatim(f"all curves of the experiment: tensorboard --logdir {folder}"), soft_wrap=True)


def describe_data(console: Console, dataset: Dataset, pool: PoolConfig | None = None) -> None:
    """Say how large a data set is."""
    catalog, sequences = dataset.catalog, dataset.sequences
    counts = (
        f"data {dataset.name}: {len(sequences.user_ids):,} users, {len(catalog):,} items, "
        f"{len(sequences):,} interactions, {int(catalog.cold.sum()):,} cold items"
    )
    console.print(verbatim(counts))
    if sequences.clock is not None and len(sequences):
        days = float(sequences.clock.max() - sequences.clock.min()) / DAY
        console.print(verbatim(f"times: {days:,.1f} days from the first interaction to the last (data.time_unit)"))
    if dataset.ties:
        console.print(verbatim(dataset.ties))
    if pool is not None and pool.size is not None:
        console.print(verbatim(pools.in_words(pool)))


def with_ties(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a split with rows for tied and untied targets behind each model that was scored on them apart."""
    rows: dict[str, Any] = {}
    for name, value in results.items():
        rows[name] = value
        for part in TIES if isinstance(value, dict) else ():
            kinds = {kind: _part(scores, part) for kind, scores in value.items() if f"{part}_rows" in scores}
            rows |= {f"{NAMES.get(name, name)}, {part}": kinds} if kinds else {}
    return rows


def _part(scores: dict[str, float | None], part: str) -> dict[str, float | None]:
    """The metrics of one part of the targets under their own names."""
    return {name.removeprefix(f"{part}_"): value for name, value in scores.items() if name.startswith(f"{part}_")}


def ranking_table(console: Console, split: str, results: Mapping[str, Any], k: Sequence[int]) -> None:
    """Print the metrics of all models on a split in one table, history excluded and raw, and what they lack.

    A terminal too narrow for all columns shows those of the cut-offs first; metrics.json holds all.
    """
    rows = {name: value for name, value in _with_readings(results).items() if isinstance(value, Mapping)}
    kinds = {kind: {name: value[kind] for name, value in rows.items() if kind in value} for kind in KINDS}
    kinds["excluded"].pop("repeat_last", None)  # without the history it is most popular
    every = [values for scored in kinds.values() for values in scored.values()]
    passes = list(dict.fromkeys(name for values in every for name in values if name.startswith("pass@")))
    names = [safe(NAMES.get(name, name)) for name in rows]
    inside = any("pool_size" in values for values in every)
    room = (console.width - 3 - max(map(len, (*names, *KINDS.values())))) // 8 - len(passes) - 2 * inside
    shown = [*columns(k, max(1, room)), *passes]
    users = f"{every[0]['rows']:.0f} users, {every[0]['cold_rows']:.0f} with a cold target"
    table = Table(title=f"{split} ({users})", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("", no_wrap=True)
    for column in shown:
        metric, cut = column.split("@")
        head = COLUMNS.get(metric, metric)
        table.add_column(head if metric == "mrr" else f"{head}@{cut}", justify="right", no_wrap=True, min_width=6)
    for head in ("Pool", "Ceiling") if inside else ():
        table.add_column(head, justify="right", no_wrap=True, min_width=6)
    for kind, scored in kinds.items():
        if scored:
            table.add_section()
            table.add_row(f"[bold]{KINDS[kind]}[/]")
        for name, values in scored.items():
            found = [values.get(column) for column in shown]
            said = ["-" if value is None else f"{value:.4f}" for value in found]
            table.add_row(verbatim(NAMES.get(name, name)), *said, *(_pool_cells(values) if inside else ()))
    console.print(table)
    heads = {column.partition("@")[0] for column in shown}
    defined = [
        f"{COLUMNS[name]}@{main_cut(k)}: {definition(name, every[0]['cold_rows'])}"
        for name in DEFINITIONS
        if name in heads
    ]
    for line in (f"{'; '.join(defined)}." if defined else "", *remarks(kinds, max(k))):
        if line:
            console.print(verbatim(line))


def definition(metric: str, cold_rows: float | None) -> str:
    """What a metric of `DEFINITIONS` is, with the number of rows that it is about; None: nobody kept it.

    Example:
        >>> definition("cold_recall", 12)[:51]
        'recall of the 12 users whose target is a cold item,'
    """
    count = "" if cold_rows is None else f"{cold_rows:,.0f} "
    return DEFINITIONS[metric].replace("{cold} ", count)


def columns(k: Sequence[int], room: int) -> list[str]:
    """The metrics that a table has room for, in the order they are shown.

    NDCG up to the main cut-off and recall from it on stand for all cut-offs; the others follow where there is room.

    Example:
        >>> columns([1, 5, 10, 20, 50], 7)
        ['ndcg@1', 'ndcg@5', 'ndcg@10', 'recall@10', 'recall@20', 'recall@50', 'mrr@50']
        >>> columns([5, 10], 3)
        ['ndcg@5', 'ndcg@10', 'recall@10']
    """
    main, last = main_cut(k), max(k)
    first = [f"ndcg@{main}", f"recall@{main}"]
    first += [f"ndcg@{cut}" for cut in k if cut < main] + [f"recall@{cut}" for cut in k if cut > main]
    rest = [f"mrr@{last}", f"cold_recall@{main}", f"coverage@{main}", f"entropy@{main}"]
    rest += [f"recall@{cut}" for cut in k if cut < main] + [f"ndcg@{cut}" for cut in k if cut > main]
    kept = [*first, *rest][:room]
    order = [f"{metric}@{cut}" for metric in COLUMNS for cut in sorted(k)]
    return sorted(kept, key=order.index)


def remarks(kinds: Mapping[str, Mapping[str, Mapping[str, float | None]]], largest: int) -> list[str]:
    """What is to be said of the lists behind a table: kind of ranking -> model -> its metrics.

    Args:
        kinds: of one split.
        largest: the largest cut-off.
    """
    found: dict[str, list[str]] = {}
    kinds = {kind: scored for kind, scored in kinds.items() if scored}
    for kind, scored in kinds.items():
        for line in shortcomings(scored, largest):
            found.setdefault(line, []).append(kind)
    lines = [line if len(of) == len(kinds) else f"{KINDS[of[0]].capitalize()}: {line}" for line, of in found.items()]
    shares = [values.get("target_seen") or 0.0 for values in kinds.get("excluded", {}).values()]
    counted = next((values for scored in kinds.values() for values in scored.values() if "tied_rows" in values), None)
    if counted is not None:
        lines.append(ties({part: counted[f"{part}_rows"] or 0 for part in TIES}))
    lines += pools_said([values for scored in kinds.values() for values in scored.values()])
    if any(shares):
        lines.append(
            f"The targets of {_share(max(shares))} of the users are items of their own history: with the history "
            f"excluded they are misses for every row."
        )
    return lines


def _pool_cells(values: Mapping[str, float | None]) -> tuple[str, str]:
    """Candidates of each request and the share of the targets among them; `all` is the whole catalogue."""
    size, ceiling = values.get("pool_size"), values.get("pool_ceiling")
    return ("all", "1.0000") if size is None or ceiling is None else (f"{size:.0f}", f"{ceiling:.4f}")


def pools_said(scored: Sequence[Mapping[str, float | None]]) -> list[str]:
    """What is to be said of numbers inside candidate pools; nothing where there are none.

    Example:
        >>> pools_said([{"pool_size": 100.0, "pool_ceiling": 0.934}])[0][:70]
        'Ranked inside pools of 100 candidates, among them 93.4% of the targets'
    """
    found = dict.fromkeys(_pool_cells(values) for values in scored)
    found.pop(("all", "1.0000"), None)
    return [
        f"Ranked inside pools of {size} candidates, among them {100 * float(ceiling):.1f}% of the targets: no recall "
        f"is higher, and no number can be compared with one of the whole catalogue (data.pool)."
        for size, ceiling in found
    ]


def ties(counts: Mapping[str, float]) -> str:
    """What tied and untied targets are, and how many there are of each."""
    return (
        f"tied: the {counts['tied']:,.0f} users whose target has the time of the interaction before it; untied: the "
        f"other {counts['untied']:,.0f}."
    )


def shortcomings(scored: Mapping[str, Mapping[str, float | None]], largest: int) -> list[str]:
    """What is to be said of models with short lists, or with lists that are not proven to be the best of the catalogue.

    Args:
        scored: model -> its metrics in one kind of ranking.
        largest: the largest cut-off.
    """
    found: dict[str, list[str]] = {}
    for name, values in scored.items():
        short, certified = values.get(f"short@{largest}") or 0.0, values.get(f"certified@{largest}")
        said = []
        if short > 0:
            said.append(f"the lists of {_share(short)} of the users have fewer than {largest} items")
        if certified is not None and certified < 1:
            said.append(
                f"the lists of {_share(1 - certified)} of the users are not proven to hold the best {largest} items of "
                f"the catalogue (evaluate.exact)"
            )
        if said:
            found.setdefault("; ".join(said), []).append(NAMES.get(name, name))
    return [f"{', '.join(names)}: {text}." for text, names in found.items()]


def _share(value: float) -> str:
    """Percent that never rounds to none."""
    return f"{100 * value:.1f}%" if value >= 0.0005 else "less than 0.1%"


def _with_readings(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with a row of its own for each further reading of a model's weights."""
    rows: dict[str, Any] = {}
    for name, value in results.items():
        rows[name] = value
        if isinstance(value, Mapping):
            rows |= {f"{name}, {way}": read for way, read in value.get("readings", {}).items()}
    return rows


def show(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print what a run scored on test rows, and what each of its stages brought and cost, in words."""
    scored = dict(metrics["test"])
    first = next(iter(scored.values()))["raw"]
    k = sorted({int(name.split("@")[1]) for name in first if name.startswith("ndcg@")})
    if "rl" in scored:
        scored[f"rl ({metrics['objective']['name']})"] = scored.pop("rl")
    if "baseline" in scored:
        scored[metrics["baseline"]["name"]] = scored.pop("baseline")
    ranking_table(console, "test", with_ties(scored), k)
    differences = metrics.get("differences", {})
    words = "brought, with the history excluded; 95% intervals, for other users:" if differences else "cost:"
    console.print(verbatim(f"What each stage {words}"), soft_wrap=True)
    before = ""
    for name, stage in metrics["stages"].items():
        gain = differences.get(name, {}).get("excluded", {}).get(f"ndcg@{main_cut(k)}")
        brought = "" if gain is None else f": {_brought(gain, before, kept=stage['best_step'] == 0, k=main_cut(k))}"
        cost = f"{stage['seconds']:.1f} s, {stage['peak_mib']:.0f} MiB, weights of step {stage['best_step']}"
        console.print(verbatim(f"  {name} ({cost}){brought}"), soft_wrap=True)
        for note in stage.get("notes", ()):
            console.print(verbatim(f"    {note}"), soft_wrap=True)
        before = name


def _brought(gain: Sequence[float], before: str, *, kept: bool, k: int) -> str:
    """What a stage brought, from its difference to the one before and the ends of its interval, in words."""
    if kept:
        return f"no validation beat {before}; its weights were kept."
    mean, low, high = gain
    number = f"NDCG@{k} {signed(mean)} [{signed(low)}, {signed(high)}] against {before}"
    if low <= 0 <= high:
        return f"{number}; nothing was learned that these users can tell apart from {before}."
    return f"{number}; {'better' if mean > 0 else 'worse'} than {before}."


def stage_differences(
    stages: Mapping[str, Any], folder: Path, k: Sequence[int]
) -> dict[str, dict[str, dict[str, tuple[float, float, float]]]]:
    """What each stage of a run scored on test more than the one before it: stage -> as `paired_differences`."""
    places = [(name, Path(stage.get("evaluation", folder))) for name, stage in stages.items()]
    return {name: paired_differences(before, after, k) for (_, before), (name, after) in pairwise(places)}


def paired_differences(before: Path, after: Path, k: Sequence[int]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Test metrics of one run folder minus those of another on the same users.

    Returns:
        Kind of ranking -> metric -> the difference and the ends of its 95% interval, which covers the choice of users
        and not the seed (`genrl.metrics.paired_difference` with one seed).
    """
    old, new = load_file(before / "ranks.safetensors"), load_file(after / "ranks.safetensors")
    top = main_cut(k)
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for kind in KINDS:
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
    panels = {name: {title: band([notes[name]])} for name in CURVES if len(notes.get(name, ())) > 1}
    if not panels:
        return
    picture = folder / "curves.png"
    save(curve_grid(panels, looks([title]), title=title), picture)
    with SummaryWriter(str(folder)) as board:
        board.add_image("curves", imread(picture), dataformats="HWC")
