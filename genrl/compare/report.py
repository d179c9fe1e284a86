"""The report of a comparison: what its finished runs say, with intervals, as data, as Markdown and as a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genrl.compare.board import write_comparison
from genrl.compare.finished import (
    KINDS,
    SPLITS,
    Damaged,
    Finished,
    Rows,
    begun,
    check_same_start,
    cold_rows,
    comparable,
    describe,
    found_rows,
    mixed,
    planned_rows,
    read_samples,
    row_facts,
    shared_by_all,
    with_shared_stages,
)
from genrl.compare.page import draw, html, markdown
from genrl.compare.plan import Plan, Run, check_baseline
from genrl.compare.quantities import MEASURES
from genrl.compare.record import Choice, Cost, Difference, Expense, Line, Pair, Point, Report, Row, Table
from genrl.compare.run import choose, is_done
from genrl.compare.verdict import listed
from genrl.config.select import main_cut, selected
from genrl.errors import DataError, FolderError, unwritable
from genrl.files import locked, sweep, write_json, write_text
from genrl.given import reason
from genrl.metrics.comparison import Difference as Paired
from genrl.metrics.comparison import holm, paired_difference, seed_interval, warnings_of
from genrl.metrics.ranking import TIES
from genrl.plots import read_notes
from genrl.runs.tables import remarks

APART = ("ndcg", "recall")
"""What tied and untied targets are scored in."""
Outcomes = Mapping[int, Tensor]
"""Seed -> a number per row [R]; whatever has no seeds has one entry."""
Expenses = Callable[[Rows], dict[str, Expense]]
"""Says what thinking costs each row (`genrl.compare.studies.thinking.measure`)."""


def write_report(report: Report, folder: Path, place: Path) -> None:
    """Write report.json, report.md, report.png and report.html, and the pages of TensorBoard.

    Args:
        report: what they say.
        folder: of the experiment.
        place: where they go; made if it is not there.

    Raises:
        FolderError: if it cannot be written to, its disk is full, or a file is in its place.
    """
    # Steps of baselines are not steps of stage rl, so they have no curves.
    trained = {row: facts.runs for row, facts in report.rows.items() if facts.kind == "objective"}
    noted = {row: [read_notes(folder / run) for run in runs] for row, runs in trained.items()}
    page = html(report, noted, {row: read_samples(folder / runs[0]) for row, runs in trained.items()})
    try:
        with locked(place):  # another comparison of the experiment may write its report, too
            sweep(place, ".*.report.*")
            write_json(place / "report.json", report.to_json())
            draw(noted, place / "report.png")
            write_text(place / "report.html", page)
            write_text(place / "report.md", markdown(report))
            write_comparison(place, noted, report)
    except Exception as error:  # drawing has errors of its own for a full disk
        if not isinstance(error, OSError) and not unwritable(error):
            raise
        raise FolderError(
            f"the report cannot be written into {place} ({reason(error)}), so what is above is all of it; runs are as "
            f"they were. Give --report FOLDER to have it elsewhere, or mend the cause and give the command again."
        ) from error


def make_report(
    folder: Path,
    plan: Plan | None,
    baseline: str | None = None,
    measure: Expenses | None = None,
    evaluate: Sequence[str] = (),
) -> Report:
    """What the finished runs of an experiment say.

    Args:
        folder: of the experiment.
        plan: the comparison; None reports every finished run of the folder, by name. The finished baselines of the
            folder are reported in both cases.
        baseline: the row that the others are compared with; None: the last stage before `rl`.
        measure: says what thinking costs. Its rows need not share the stages before `rl`.
        evaluate: `evaluate.option=value` texts; runs that were scored with others are scored again.

    Raises:
        DataError: if no run is finished and whole, or runs cannot be compared.
    """
    damaged: Damaged = {}
    told: Any = {"evaluate": evaluate, "damaged": damaged}
    rows = with_shared_stages(found_rows(folder, "rl", **told)) if plan is None else planned_rows(plan, **told)
    baselines, notes = comparable(found_rows(folder, "baseline", **told), rows)
    everything = {**baselines, **rows}
    runs = [run for found in (*rows.values(), *baselines.values()) for run in found]
    if not runs:
        nothing = f"{folder}: no run of stage rl or baseline is finished there, so there is nothing to report."
        waiting = [path.name for path in begun(folder) if not is_done(path)]
        how = f"not finished: {', '.join(waiting)}. Go on with each by its command.txt and --resume."
        raise DataError("\n".join([nothing, *([how] if waiting else []), *damaged.values()]))
    notes += [f"{name} is left out: it is damaged. `genrl verify --run` says how." for name in damaged]
    if any(run.scored != run.folder for run in runs):
        notes.append(f"Every row was scored again with {', '.join(evaluate)}; weights were chosen as before.")
    if measure is None:
        check_same_start(runs)
    shared = list(shared_by_all(runs)) or (["align"] if plan is None else plan.shared.config.stages)
    baseline = baseline or shared[-1]
    check_baseline(baseline, [*shared, *baselines, *(rows if plan is None else plan.rows)])
    expected = begun(folder) if plan is None else [run.folder for run in expected_runs(plan)]
    tables = {split: {kind: table(rows, baselines, split, kind, baseline) for kind in KINDS} for split in SPLITS}
    facts = {row: row_facts(found, read_notes(found[0].folder)) for row, found in everything.items()}
    said = [*mixed(everything), *_unmoved(rows), *_unlearned(everything), *_unequal(facts), *_notes(tables, baseline)]
    return Report(
        **describe(runs),
        baseline=baseline,
        planned=plan is not None,
        unfinished=[path.name for path in expected if not is_done(path)],
        notes=[*notes, *said, *_of_lists({**rows, **baselines})],
        choices={} if plan is None else choices(plan),
        tables=tables,
        rows=facts,
        commands={run.folder.name: run.metrics["command"] for run in runs},
        cost=cost(everything),
        thinking=None if measure is None else measure(rows),
        damaged=damaged,
    )


def _unmoved(rows: Rows) -> list[str]:
    """What is to be said of rows that have the weights they began with, in every run."""
    names = [row for row, found in rows.items() if all(run.metrics["stages"]["rl"]["best_step"] == 0 for run in found)]
    if not names:
        return []
    return [f"{listed(names)}: no validation beat the start in any run, and its weights were kept."]


def _unlearned(rows: Rows) -> list[str]:
    """What runs have to say of training that taught them nothing, or less than was asked for."""
    return [
        f"{run.folder.name}: {' '.join(run.metrics['stages'][run.stage]['notes'])}"
        for found in rows.values()
        for run in found
        if run.metrics["stages"][run.stage].get("notes")
    ]


def _unequal(facts: Mapping[str, Row]) -> list[str]:
    """What is to be said if the rows of objectives saw different numbers of prompts."""
    prompts = {name: row.spent["prompts"] for name, row in facts.items() if row.spent is not None}
    if len(set(prompts.values())) < 2:
        return []
    told = ", ".join(f"{name} {count:,}" for name, count in prompts.items())
    return [
        f"Rows saw different numbers of prompts ({told}), which can be what tells them apart; --budget prompts=N gives "
        f"all of them as many."
    ]


def _of_lists(rows: Rows) -> list[str]:
    """What is to be said of the lists behind the tables of test: short, not certified, with targets of the history."""
    runs = [run for found in rows.values() for run in found]
    first, kinds = runs[0], {}
    largest = max(int(name.partition("@")[2]) for name in first.scores("test")["raw"] if name.startswith("ndcg@"))
    names = (f"short@{largest}", f"certified@{largest}", "target_seen", "pool_size", "pool_ceiling")
    alike = [*first.references("test"), *shared_by_all(runs)]
    for kind in ("excluded", "raw"):
        lines = {name: [first.metrics["test"][name][kind]] for name in alike}
        lines |= {row: [run.scores("test")[kind] for run in found] for row, found in rows.items()}
        kinds[kind] = {row: _means(values, names) for row, values in lines.items()}
    return remarks(kinds, largest)


def expected_runs(plan: Plan) -> list[Run]:
    """The runs that the comparison needs as far as it is known: first seeds, and all seeds of what was chosen."""
    needed = []
    for candidates in plan.rows.values():
        _, best = choose(candidates)
        needed += [candidate.runs[0] for candidate in candidates]
        needed += [] if best is None else best.runs[1:]
    return needed


def choices(plan: Plan) -> dict[str, Choice]:
    """What each row with a grid was chosen from, with the scores on validation; no score on test."""
    found = {}
    for row, candidates in plan.rows.items():
        if len(candidates) == 1:
            continue
        scores, best = choose(candidates)
        points = [
            Point(candidate.runs[0].folder.name, dict(candidate.point), score)
            for candidate, score in zip(candidates, scores, strict=True)
        ]
        config = candidates[0].runs[0].config
        found[row] = Choice(
            f"valid {config.select.ranking} {selected(config)}", points, None if best is None else dict(best.point)
        )
    return found


def table(rows: Rows, baselines: Rows, split: str, kind: str, baseline: str) -> Table:
    """One table: reference lines, baselines, shared stages, and each row with its differences to the baseline.

    A run of a baseline with the name of a reference line gives that line its differences.
    """
    runs = [run for found in (*rows.values(), *baselines.values()) for run in found]
    first = runs[0]
    top = main_cut(int(name.partition("@")[2]) for name in first.scores(split)[kind] if name.startswith("ndcg@"))
    same = {"repeat_last"} - baselines.keys() if kind == "excluded" else ()  # it is most popular there
    lines = {name: _fixed_line(one[kind], top) for name, one in first.references(split).items() if name not in same}
    places = {row: _places(found[:1] if row in lines else found, f"{split}/{kind}") for row, found in baselines.items()}
    lines |= {row: _line(found, split, kind, top) for row, found in baselines.items() if row not in lines}
    if rows:
        for stage, place in shared_by_all(runs).items():
            lines[stage] = _fixed_line(first.metrics[split][stage][kind], top)
            places[stage] = {0: load_file(place / "ranks.safetensors")[f"{split}/{kind}"]}
        lines |= {row: _line(found, split, kind, top) for row, found in rows.items()}
        places |= {row: _places(found, f"{split}/{kind}") for row, found in rows.items()}
    cold = cold_rows(runs, split)
    pairs = _add_differences(lines, places, cold, baseline, top, asked=list(rows))
    users = len(first.ranks[f"{split}/{kind}"])
    scored = first.scores(split)[kind]
    pool = None
    if "pool_size" in scored:  # the same in all runs of a table
        pool = {"size": float(scored["pool_size"]), "ceiling": float(scored["pool_ceiling"])}
    targets = _targets(runs, split, kind)
    return Table(top, users, None if cold is None else int(cold.sum()), lines, pairs, targets, pool)


def differences(
    outcomes: Mapping[str, Outcomes], baseline: str, fixed: Collection[str] = (), asked: Collection[str] = ()
) -> dict[str, Difference]:
    """Each row minus the baseline in one metric; Holm's correction is over the rows asked for, and over the others.

    Args:
        outcomes: of every row, the baseline among them.
        baseline: one of the rows.
        fixed: rows that no seed could change: reference lines, and the weights that all share.
        asked: rows whose comparison is the question.
    """
    compared = [row for row in outcomes if row != baseline]
    found: dict[str, Difference] = {}
    for family in (True, False):
        rows = [row for row in compared if (row in asked) == family]
        found |= zip(rows, corrected([(row, baseline) for row in rows], outcomes, fixed), strict=True)
    return {row: found[row] for row in compared}


def corrected(
    pairs: Sequence[tuple[str, str]], outcomes: Mapping[str, Outcomes], fixed: Collection[str]
) -> list[Difference]:
    """The first row of each pair minus the second, with an interval, warnings, and Holm's p-value over all pairs."""
    found = [paired_difference(*_paired(outcomes[row], outcomes[other])) for row, other in pairs]
    p_values = holm(torch.tensor([difference.p_value for difference in found], dtype=torch.float64)).tolist()
    return [
        Difference(
            effect=_rounded(difference.effect),
            low=_rounded(difference.low),
            high=_rounded(difference.high),
            relative=_number(difference.relative),
            p_holm=_rounded(p_value),
            seed_noise=_number(difference.seed_noise),
            rows=difference.users,
            seeds_covered=all(row in fixed or len(outcomes[row]) > 1 for row in pair),
            warnings=_warnings(difference, pair, outcomes, fixed),
        )
        for pair, difference, p_value in zip(pairs, found, p_values, strict=True)
    ]


def cost(rows: Rows) -> dict[str, Cost]:
    """Seconds and peak memory of the stages, mean and largest over seeds."""
    found: dict[str, Cost] = {}
    common = shared_by_all([run for runs in rows.values() for run in runs])
    for row, runs in rows.items():
        for stage in runs[0].shared:
            name = stage if stage in common else f"{row}, {stage}"
            found.setdefault(name, _cost([runs[0].metrics["stages"][stage]]))
        found[row] = _cost([run.metrics["stages"][run.stage] for run in runs])
    return found


def _add_differences(
    lines: Mapping[str, Line],
    places: Mapping[str, Mapping[int, Tensor]],
    cold: Tensor | None,
    baseline: str,
    top: int,
    asked: Sequence[str],
) -> list[Pair]:
    """Give lines their differences, and return those of pairs, in all metrics that are known on two users at least."""
    pairs = [Pair(row, other) for other, row in combinations([row for row in asked if row != baseline], 2)]
    fixed = {row for row, line in lines.items() if not line.seeds}
    for measure in MEASURES.values():
        outcome = measure.outcome
        if outcome is None or (measure.cold and (cold is None or int(cold.sum()) < 2)):
            continue
        mask = cold if measure.cold and cold is not None else slice(None)
        outcomes = {
            row: {seed: outcome(ranks[mask][:, None], top) for seed, ranks in found.items()}
            for row, found in places.items()
        }
        metric = f"{measure.name}@{top}"
        if baseline in places:
            for row, difference in differences(outcomes, baseline, fixed, asked).items():
                lines[row].differences[metric] = difference
        between = corrected([(pair.row, pair.other) for pair in pairs], outcomes, fixed)
        for pair, difference in zip(pairs, between, strict=True):
            pair.differences[metric] = difference
    return pairs


def _places(runs: Sequence[Finished], part: str) -> dict[int, Tensor]:
    return {run.seed: run.ranks[part] for run in runs}


def _fixed_line(values: Mapping[str, float | None], top: int) -> Line:
    """The line of what no seed changes."""
    return Line(_means([values], _shown(top)), seeds=[], ties=_apart([values], top))


def _line(runs: Sequence[Finished], split: str, kind: str, top: int) -> Line:
    """The line of a row with seeds."""
    values = [run.scores(split)[kind] for run in runs]
    by_seed = [value[f"ndcg@{top}"] for value in values]
    interval = seed_interval(torch.tensor(by_seed, dtype=torch.float64))
    ends = [_number(interval.low), _number(interval.high)]
    seeds = [run.seed for run in runs]
    return Line(_means(values, _shown(top)), seeds, by_seed, ends, ties=_apart(values, top))


def _targets(runs: Sequence[Finished], split: str, kind: str) -> dict[str, int]:
    """How many targets are tied and untied, from a run that was scored on them apart; nothing if none was."""
    for run in runs:
        values = run.scores(split)[kind]
        if all(f"{part}_rows" in values for part in TIES):
            return {part: int(values[f"{part}_rows"]) for part in TIES}
    return {}


def _apart(values: Sequence[Mapping[str, float | None]], top: int) -> dict[str, dict[str, float | None]]:
    """Means over seeds for tied and for untied targets; nothing if some seed was not scored on them apart."""
    if not all(f"{TIES[0]}_rows" in value for value in values):
        return {}
    found = {}
    for part in TIES:
        means = _means(values, [f"{part}_{metric}@{top}" for metric in APART])
        found[part] = {name.removeprefix(f"{part}_"): mean for name, mean in means.items()}
    return found


def _warnings(
    difference: Paired, compared: tuple[str, str], outcomes: Mapping[str, Outcomes], fixed: Collection[str]
) -> list[str]:
    found = warnings_of(difference, difference.users, trained=not set(compared) <= set(fixed))
    for one, other in (compared, compared[::-1]):
        if one not in fixed and len(outcomes[one]) == 1 < len(outcomes[other]):
            found.append(f"One training seed of {one}: the noise of its training is not in the interval.")
    ours, theirs = (outcomes[row] for row in compared)
    common = _common(ours, theirs)
    if 1 < len(common) < len(ours.keys() | theirs.keys()):
        listed = ", ".join(map(str, common))
        found.append(f"Compared on the seeds that both have, {listed}; the mean of each is over all its seeds.")
    return found


def _paired(ours: Outcomes, theirs: Outcomes) -> tuple[Tensor, Tensor]:
    """Outcomes [seeds, R] of both: of the seeds that both have, or of all if they do not share two."""
    common = _common(ours, theirs)
    if len(common) > 1:
        return torch.stack([ours[seed] for seed in common]), torch.stack([theirs[seed] for seed in common])
    return torch.stack(list(ours.values())), torch.stack(list(theirs.values()))


def _common(ours: Outcomes, theirs: Outcomes) -> list[int]:
    return [seed for seed in ours if seed in theirs]


def _notes(tables: Mapping[str, Mapping[str, Table]], baseline: str) -> list[str]:
    """What a reader must know of all tables."""
    found = []
    every = [part for kinds in tables.values() for part in kinds.values()]
    if not any(line.differences for part in every for line in part.lines.values()):
        found.append(f"{baseline} has no finished run, or is the only row: no row has a difference to it.")
    elif any(part.cold_rows is None for part in every):
        found.append(
            "These runs are of a version that did not keep which targets are cold, so there is no difference of cold "
            "recall. One new run in the experiment keeps them for all, e.g. `fit --baseline most_popular`."
        )
    return found


def _shown(top: int) -> list[str]:
    """The metrics of a table."""
    return [f"{metric}@{top}" for metric in MEASURES]


def _means(values: Sequence[Mapping[str, float | None]], names: Iterable[str]) -> dict[str, float | None]:
    """Means over seeds of some metrics; None where a metric has no rows."""
    found: dict[str, float | None] = {}
    for name in names:
        known = [value for value in (part.get(name) for part in values) if value is not None]
        found[name] = _number(statistics.mean(known)) if known else None
    return found


def _cost(stages: Sequence[Mapping[str, float]]) -> Cost:
    seconds = statistics.mean(stage["seconds"] for stage in stages)
    return Cost(round(seconds, 1), max(stage["peak_mib"] for stage in stages))


def _number(value: float) -> float | None:
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return round(value, 8) + 0.0  # no minus before 0
