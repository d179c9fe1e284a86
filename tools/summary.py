"""Table of all finished runs of an experiment: mean over seeds, and the gain over `align` with a paired interval.

    python tools/summary.py runs/beauty                 # Markdown, to paste into docs/experiments.md
    python tools/summary.py runs/beauty --split valid   # what settings are chosen on

The interval is a paired bootstrap over users of the outcome averaged over seeds: it covers the choice of users. The
standard deviation over seeds stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genrl.metrics.functional import ndcg_at_k
from genrl.metrics.intervals import paired_interval
from genrl.training.folder import read_json

OTHERS = ("entropy@10", "cold_recall@10", "top1pct_share@10")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="experiment folder, e.g. runs/beauty")
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    arguments = parser.parse_args()
    runs = finished_runs(arguments.folder)
    if not runs:
        print(f"{arguments.folder}: no finished run there.", file=sys.stderr)
        return 2
    for kind in ("raw", "excluded"):
        print("\n".join(table(runs, arguments.split, kind)), end="\n\n")
    return 0


def finished_runs(folder: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """Name of the runs -> its finished runs, by seed."""
    runs: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for path in sorted(folder.glob("*-s*/metrics.json")):
        metrics = read_json(path)
        if "rl" in metrics["stages"]:
            runs[metrics["name"]].append((path.parent, metrics))
    return dict(runs)


def table(runs: dict[str, list[tuple[Path, dict[str, Any]]]], split: str, kind: str) -> list[str]:
    """Markdown lines of one table."""
    title = "history excluded" if kind == "excluded" else "raw"
    lines = [
        f"**{split}, {title}**",
        "",
        f"| | seeds | R@10 | N@10 | N@10 minus align [95% interval] | gain | {' | '.join(OTHERS)} |",
        f"|---|---|---|---|---|---|{'---|' * len(OTHERS)}",
    ]
    first = next(iter(runs.values()))[0][1]
    for name, values in first[split].items():
        if name != "rl":
            shown = values[kind]
            cells = [f"{shown['recall@10']:.4f}", f"{shown['ndcg@10']:.4f}", "", "", *(_cell(shown[o]) for o in OTHERS)]
            lines.append(f"| {name} | | {' | '.join(cells)} |")
    for name, found in runs.items():
        lines.append(_row(name, found, split, kind))
    return lines


def _row(name: str, found: list[tuple[Path, dict[str, Any]]], split: str, kind: str) -> str:
    scored = [metrics[split]["rl"][kind] for _, metrics in found]
    before = torch.stack([_outcomes(Path(m["stages"]["align"]["evaluation"]), split, kind) for _, m in found]).mean(0)
    after = torch.stack([_outcomes(folder, split, kind) for folder, _ in found]).mean(0)
    gain = paired_interval(after, before)
    seeds = [values["ndcg@10"] for values in scored]
    spread = f" ± {statistics.stdev(seeds):.4f}" if len(seeds) > 1 else ""
    cells = [
        str(len(found)),
        f"{statistics.mean(values['recall@10'] for values in scored):.4f}",
        f"{statistics.mean(seeds):.4f}{spread}",
        f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
        f"{100 * gain.mean / float(before.mean()):+.1f}%",
        *(_cell(_mean([values[other] for values in scored])) for other in OTHERS),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _outcomes(folder: Path, split: str, kind: str) -> Tensor:
    """NDCG@10 of every row."""
    ranks = load_file(folder / "ranks.safetensors")[f"{split}/{kind}"]
    return ndcg_at_k(ranks[:, None], 10)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
