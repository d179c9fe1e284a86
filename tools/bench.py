"""Measure genrl against its peers in one process: `python tools/bench.py [--only NAME] [--device cuda --sizes card]`.

Each figure is a ratio of variants that were measured in turn, with its quartiles over the rounds; that they compute the
same thing is checked in the same run. Peers: transformers, and for `step` TRL (`pip install -e ".[bench]"`).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from benchmarks.checks import DifferenceError
from benchmarks.decoding import beams, catalogues, groups, rollouts, slates, thinking_rollouts
from benchmarks.figures import Figure, as_json, plot, table
from benchmarks.floor import floors
from benchmarks.inputs import CARD, FULL, QUICK, Sizes
from benchmarks.items import items
from benchmarks.planning import plans
from benchmarks.steps import steps, thinking_steps
from benchmarks.updating import long, memory, thinking_updates, ways
from benchmarks.waiting import waits
from rich.console import Console

from genrl.errors import ConfigError, GenRLError, UnsupportedError
from genrl.files import write_json

BENCHMARKS: dict[str, Callable[[Sizes, int], list[Figure]]] = {
    "rollout": rollouts,
    "beam": beams,
    "step": steps,
    "floor": floors,
    "memory": memory,
    "plan": plans,
    "catalogue": catalogues,
    "groups": groups,
    "long": long,
    "ways": ways,
    "items": items,
    "slates": slates,
    "reasoning": thinking_rollouts,
    "reasoning-update": thinking_updates,
    "reasoning-step": thinking_steps,
    "waits": waits,
}
"""Name -> what measures it, given sizes and the number of rounds."""
NEED_TRL = ("step", "reasoning-step")
FLOAT32 = ("catalogue", "ways", "items", "waits")
"""Benchmarks that are about other things than the model's arithmetic, and have one precision."""
PLACE = ("device", "precision")
SIZES = {"full": FULL, "quick": QUICK, "card": CARD}
CARD_GOALS = {"step": 8.0, "floor": 1.5}
"""Goals of a GPU in bf16, by name of the benchmark."""
RESIZED = {
    "hidden": "width of the model",
    "layers": "layers of the model",
    "thinking_prompts": "prompts of the benchmarks with thinking",
    "thinking_prompt": "tokens of each of them",
    "budget": "words of a think block",
    "words": "tokens of the vocabulary to think with",
}
"""Sizes that the command line may change."""


def main(words: list[str] | None = None) -> int:
    """Measure, show and write; 2 if something is missing, 1 if two ways to compute the same thing disagree."""
    options = _parser().parse_args(words)
    chosen = [options.only] if options.only else list(BENCHMARKS)
    console = Console(stderr=True)
    try:
        require_peers(chosen)
        torch.set_num_threads(options.threads)
        load = busy(options.threads, console)
        sizes = chosen_sizes(options)
        require_device(chosen, sizes)
        figures = measure(chosen, sizes, options.repeats, console)
    except (GenRLError, DifferenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DifferenceError) else 2
    Console().print(table(figures))
    for checked in dict.fromkeys(f"{figure.name}: {figure.checked}" for figure in figures):
        print(f"checked  {checked}")
    if options.json:
        write_json(options.json, as_json(figures, options.repeats, sizes, load))
    if options.plot:
        plot(figures, options.plot)
    return 0


def chosen_sizes(options: argparse.Namespace) -> Sizes:
    """Sizes that the command line asks for, where and in which precision."""
    sizes = SIZES[options.sizes]
    changes = {name: value for name in RESIZED if (value := getattr(options, name)) is not None}
    if "hidden" in changes:
        changes["feed_forward"] = 2 * changes["hidden"]
    changes |= {name: getattr(options, name) for name in PLACE if getattr(options, name) != getattr(sizes, name)}
    return replace(sizes, **changes) if changes else sizes


def goal(figure: Figure, sizes: Sizes) -> float | None:
    """What a figure should reach: its goal at full size on a CPU, another at the sizes of a card in bf16 on one."""
    if sizes == replace(CARD, device="cuda", precision="bf16"):
        return CARD_GOALS.get(figure.name) if figure.goal is not None else None
    return figure.goal if sizes is FULL and figure.name != "floor" else None


def require_device(chosen: list[str], sizes: Sizes) -> None:
    """Refuse a GPU that is not there, and a precision that a benchmark does not have.

    Raises:
        ConfigError: with what to use instead.
    """
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here. Use --device cpu.")
    fixed = [name for name in chosen if name in FLOAT32]
    if sizes.precision != "float32" and fixed:
        others = ", ".join(name for name in BENCHMARKS if name not in FLOAT32)
        raise ConfigError(
            f"--precision {sizes.precision}: the benchmark `{fixed[0]}` has float32 alone. Use --precision float32, or "
            f"--only with one of {others}."
        )


def require_peers(chosen: list[str]) -> None:
    """Say at once which extra is missing."""
    asked = [name for name in chosen if name in NEED_TRL]
    if asked and find_spec("trl") is None:
        raise UnsupportedError(
            f"the benchmark `{asked[0]}` needs trl: pip install -e '.[bench]', or choose another one with --only "
            f"({', '.join(name for name in BENCHMARKS if name not in NEED_TRL)})."
        )


def busy(threads: int, console: Console) -> float:
    """The machine's load before anything runs; says so if there are fewer idle CPUs than threads."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if threads > 1 and load + threads > cpus + 0.5:
        console.print(
            f"note: load {load:.1f} on {cpus} CPUs leaves fewer than {threads} idle. Waiting threads make small "
            f"operations up to 30 times slower, which distorts ratios: wait, or use --threads 1.",
            highlight=False,
        )
    return round(load, 2)


def measure(chosen: list[str], sizes: Sizes, repeats: int, console: Console) -> list[Figure]:
    """Run benchmarks one after the other, telling what each found."""
    figures: list[Figure] = []
    for number, name in enumerate(chosen, start=1):
        started = time.perf_counter()
        found = BENCHMARKS[name](sizes, repeats)
        figures += [replace(figure, goal=goal(figure, sizes)) for figure in found]
        shown = ", ".join(f"{figure.ratio:.2f}" for figure in found if figure.ratio is not None)
        seconds = time.perf_counter() - started
        console.print(f"{number}/{len(chosen)} {name}: ratios {shown} ({seconds:.0f} s)", highlight=False)
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BENCHMARKS, help="run one benchmark")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count, after one that does not (5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    about = "tiny ones to see that everything works, or those of a model that is worth a GPU (full)"
    parser.add_argument("--sizes", choices=SIZES, default="full", help=about)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everything runs (cpu)")
    about = "of the model while it is timed; steps train float32 weights in mixed precision (float32)"
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help=about)
    for name, what in RESIZED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{what} ({getattr(FULL, name)})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and facts about the machine")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (PNG)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
