"""Where finished runs find their targets: NDCG by what is special about a row, and what each finds that another misses.

    python tools/breakdown.py runs/beauty --rows item_knn,sasrec,align,grpo --kind excluded

Prints Markdown. The second table gives the share of the first row's hits that another row also finds, and the NDCG of
always taking the better of the two ranks: an upper bound that shows whether the two know different things.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.compare.finished import found_rows
from genrl.config import RunConfig
from genrl.config.select import main_cut
from genrl.errors import ConfigError, DataError, GenRLError, suggest
from genrl.metrics.functional import ndcg_at_k
from genrl.runs.evaluate import evaluated_rows

FREQUENCIES = ((0, 3), (4, 8), (9, 20), (21, None))
"""Training interactions of the target, from and up to."""
HISTORIES = ((1, 4), (5, 9), (10, None))
"""Items before the target, from and up to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="of an experiment")
    parser.add_argument("--rows", metavar="NAMES", help="rows between commas (default: all finished)")
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--kind", choices=("raw", "excluded"), default="excluded", help="history excluded or not")
    options = parser.parse_args(argv)
    try:
        print(breakdown(options.folder, options.rows and options.rows.split(","), options.split, options.kind))
    except GenRLError as error:
        print(f"breakdown: {error}", file=sys.stderr)
        return 2
    return 0


def breakdown(folder: Path, names: Sequence[str] | None, split: str, kind: str) -> str:
    """The two tables as Markdown, of all rows or some; `align` is the stage that policies began with.

    Raises:
        DataError: if no run is finished there.
        ConfigError: if there is no row of a name.
    """
    rows = {**found_rows(folder, "baseline"), **found_rows(folder, "rl")}
    if not rows:
        raise DataError(f"{folder}: no run is finished there. Give the folder of an experiment, e.g. runs/toy.")
    folders = {name: [run.folder for run in runs] for name, runs in rows.items()}
    shared = next((runs[0].shared for runs in rows.values() if runs[0].shared), {})
    folders |= {stage: [place] for stage, place in shared.items()}
    for name in names or ():
        if name not in folders:
            raise ConfigError(f"{folder}: no row {name!r}.{suggest(name, folders)} Rows: {', '.join(folders)}.")
    config = next(iter(rows.values()))[0].config
    k = main_cut(config.evaluate.k)
    ranks = {
        name: torch.stack([load_file(place / "ranks.safetensors")[f"{split}/{kind}"] for place in folders[name]])
        for name in names or folders
    }
    sizes = {name: value.shape[1] for name, value in ranks.items()}
    dataset = load_dataset(config.data)
    groups = row_groups(dataset, config, split)
    if set(sizes.values()) != {len(next(iter(groups.values())))}:
        raise DataError(f"{folder}: the rows are not of the same users: {sizes}. Name rows that are with --rows.")
    title = f"{dataset.name}, {split}, {'history excluded' if kind == 'excluded' else 'raw'}"
    return f"{title}\n\n{by_group(ranks, groups, k)}\n\n{overlap(ranks, k)}"


def row_groups(dataset: Dataset, config: RunConfig, split: str) -> dict[str, Tensor]:
    """Groups of evaluation rows: name -> bool [R]."""
    sequences = dataset.sequences
    positions = evaluated_rows(dataset, config.evaluate, split)
    counts = dataset.catalog.train_counts[sequences.items[positions]]
    lengths = sequences.seen(positions)
    groups = {"all": torch.ones(len(positions), dtype=torch.bool)}
    groups |= {f"target seen {_span(*span)} times": _inside(counts, *span) for span in FREQUENCIES}
    groups |= {f"history of {_span(*span)}": _inside(lengths, *span) for span in HISTORIES}
    groups["at the same time as the item before"] = sequences.tied[positions]
    return groups


def by_group(ranks: Mapping[str, Tensor], groups: Mapping[str, Tensor], k: int) -> str:
    """NDCG@k of each row in each group, mean over seeds; of places of the targets [S, R] and groups bool [R]."""
    lines = [f"| NDCG@{k} | users | {' | '.join(ranks)} |", f"|---|---|{'---|' * len(ranks)}"]
    for name, inside in groups.items():
        means = (_ndcg(value[:, inside], k) for value in ranks.values())
        cells = (f"{mean:.4f}" for mean in means) if bool(inside.any()) else ("-" for _ in ranks)
        lines.append(f"| {name} | {int(inside.sum())} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overlap(ranks: Mapping[str, Tensor], k: int) -> str:
    """What each row finds of the hits of the first row, with the first seed of both."""
    first, theirs = next(iter(ranks.items()))
    found = theirs[0] < k
    lines = [
        f"| beside {first} | of its hits, found too | of its misses, found | NDCG@{k} of the better place of both |",
        "|---|---|---|---|",
    ]
    for name, value in list(ranks.items())[1:]:
        ours = value[0] < k
        both = _share(ours, found), _share(ours, ~found)
        best = _ndcg(torch.minimum(value[0], theirs[0])[None], k)
        lines.append(f"| {name} | {both[0]:.1%} | {both[1]:.1%} | {best:.4f} |")
    return "\n".join(lines)


def _ndcg(ranks: Tensor, k: int) -> float:
    return float(ndcg_at_k(ranks.reshape(-1, 1), k).mean())


def _share(values: Tensor, inside: Tensor) -> float:
    return float(values[inside].float().mean()) if bool(inside.any()) else float("nan")


def _inside(values: Tensor, low: int, high: int | None) -> Tensor:
    return (values >= low) & (values <= (values.max() if high is None else high))


def _span(low: int, high: int | None) -> str:
    return f"{low} or more" if high is None else f"{low} to {high}"


if __name__ == "__main__":
    sys.exit(main())
