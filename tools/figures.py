"""Draw the figures of the SAGE paper (arXiv:2601.21452) from genrl's own functions and runs; see docs/figures.md.

python tools/figures.py gradient                                        gradient coefficient over importance ratio
python tools/figures.py dynamics runs/beauty --rows grpo,gbpo,sage      cold items and entropy while runs trained
python tools/figures.py ablation runs/beauty --full sage --without no_boost,no_entropy,no_decoupling
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import figures_gradient
import figures_runs

from genrl.errors import ConfigError, GenRLError


def main(words: list[str] | None = None) -> int:
    """Draw one figure; 2 if something that it needs is missing."""
    options = _parser().parse_args(words)
    path = options.out or Path(f"figures-{options.command}.png")
    try:
        options.draw(options, path)
    except GenRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _gradient(options: argparse.Namespace, path: Path) -> None:
    figures_gradient.draw(path, options.probability)


def _dynamics(options: argparse.Namespace, path: Path) -> None:
    if options.smooth < 1:
        raise ConfigError(f"--smooth {options.smooth}: must be at least 1, the value itself.")
    figures_runs.draw_dynamics(
        figures_runs.find_rows(options.folder, options.rows), path, options.smooth, options.quantities
    )


def _ablation(options: argparse.Namespace, path: Path) -> None:
    names = [options.full, *options.without]
    if len(set(names)) < len(names):
        raise ConfigError(f"--full {options.full} --without {','.join(options.without)}: a run stands there twice.")
    rows = figures_runs.find_rows(options.folder, names)
    figures_runs.draw_ablation(rows, options.full, path, options.split, options.kind)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="FIGURE")

    def command(name: str, draw: Callable[[argparse.Namespace, Path], None], about: str) -> Callable[..., object]:
        part = commands.add_parser(name, help=about)
        part.set_defaults(draw=draw)
        part.add_argument("--out", type=Path, metavar="FILE", help=f"the picture (figures-{name}.png)")
        return part.add_argument

    option = command("gradient", _gradient, "gradient coefficient over importance ratio (Figure 3)")
    option("--probability", type=float, default=0.4, metavar="P", help="pi_old of each token, below 0.5 (0.4)")
    option = command("dynamics", _dynamics, "cold items and entropy while runs trained (Figure 4)")
    option("folder", type=Path, metavar="EXPERIMENT", help="folder of finished runs, e.g. runs/toy")
    option("--rows", type=_names, default=[], metavar="NAMES", help="runs by name (all)")
    option("--smooth", type=int, default=1, metavar="N", help="mean over N notes of rollouts, not of validations (1)")
    option("--quantities", type=_names, default=[], metavar="NAMES", help="of history.jsonl, e.g. train/reward/click")
    option = command("ablation", _ablation, "metrics without each part of a method (Figure 5)")
    option("folder", type=Path, metavar="EXPERIMENT", help="folder of finished runs, e.g. runs/toy")
    option("--full", required=True, metavar="NAME", help="run of the full method")
    option("--without", required=True, type=_names, metavar="NAMES", help="runs without a part of it")
    option("--split", choices=("test", "valid"), default="test", help="held-out part (test)")
    option("--kind", choices=("raw", "excluded"), default="raw", help="history in the ranking or not (raw)")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write names between commas")
    return names


if __name__ == "__main__":
    sys.exit(main())
