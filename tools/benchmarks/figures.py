"""Measured figures: how they are taken, shown, drawn and written."""

import gc
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, TypeVar

import torch
from rich.table import Table

from genrl.progress import progress_bar
from genrl.runs.record import versions

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """One number to compare, with its spread over the rounds it was measured in."""

    name: str
    setting: str
    ours: float
    """Median over the rounds, in `unit`."""
    theirs: float | None
    """Median of what it is compared with, in `unit`."""
    unit: str
    ratio: float | None
    """Median of the ratios of the rounds."""
    quartiles: tuple[float, float] | None
    """Quartiles of those ratios."""
    goal: float | None
    """What the ratio (or, without one, `ours`) should reach."""
    better: Literal["higher", "lower"]
    """On which side of the goal it should be."""
    checked: str
    """What was found equal in the same run."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        value = self.ours if self.ratio is None else self.ratio
        if self.goal is None:
            return None
        return value >= self.goal if self.better == "higher" else value <= self.goal


def compare(
    name: str,
    setting: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    checked: str,
    unit: str = "s",
    goal: float | None = None,
    better: Literal["higher", "lower"] = "higher",
) -> Figure:
    """Figure of paired rounds. The ratio is theirs / ours ("times less") where higher is better, else ours / theirs."""
    ratios = [b / a if better == "higher" else a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Figure(name, setting, median(ours), median(theirs), unit, median(ratios), (low, high), goal, better, checked)


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """The same call, answering the seconds it took."""
    return lambda: clocked(run)[0]


def clocked(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, until the device has done all that it was given, and its result."""
    started = now()
    found = run()
    return now() - started, found


def now() -> float:
    """The time in seconds once the device has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def emptied() -> None:
    """Give back what earlier measurements left, so that it does not run the next one out of memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def interleave(
    name: str, variants: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure variants in turn, so that what else the machine does falls on all of them.

    Beside the `repeats` rounds that count there is, with `warm_up`, a first one that does not.
    """
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    with progress_bar(name, repeats + warm_up, "rounds") as advance:
        for _ in range(repeats + warm_up):
            for variant, measure in variants.items():
                found[variant].append(measure())
            advance(1)
    return {variant: values[int(warm_up) :] for variant, values in found.items()}


def as_json(figures: Sequence[Figure], repeats: int, sizes: Any, load: float) -> dict[str, Any]:  # noqa: ANN401
    """Everything that is needed to judge the figures elsewhere; `sizes` is a dataclass."""
    trl = next(iter(distributions(name="trl")), None)
    machine = {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": load,
        **({"card": card()} if sizes.device == "cuda" else {}),
    }
    return {
        "machine": machine,
        "versions": {**versions(), "trl": trl.version if trl else "not installed"},
        "repeats": repeats,
        "sizes": asdict(sizes),
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }


def card() -> dict[str, Any]:
    """Name and memory of the GPU, its driver, and the versions of CUDA that torch was built for and the driver has."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    found = {"name": device.name, "gib": round(device.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    found |= {"capability": f"{device.major}.{device.minor}", "torch": torch.__version__, "driver": "unknown"}
    if tool := shutil.which("nvidia-smi"):
        words = [tool, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        found["driver"] = subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"
    return found


def table(figures: Sequence[Figure]) -> Table:
    """All figures, for reading."""
    shown = Table(title="genrl and its peers: medians, ratio with quartiles")
    for heading in ("figure", "setting", "genrl", "peer", "ratio", "goal"):
        shown.add_column(heading, justify="right" if heading in ("genrl", "peer", "ratio") else "left")
    for figure in figures:
        spread = "" if figure.quartiles is None else f" ({figure.quartiles[0]:.2f}-{figure.quartiles[1]:.2f})"
        sign = ">=" if figure.better == "higher" else "<="
        shown.add_row(
            figure.name,
            figure.setting,
            f"{figure.ours:.3g} {figure.unit}",
            "" if figure.theirs is None else f"{figure.theirs:.3g} {figure.unit}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}{spread}",
            "" if figure.goal is None else f"{sign} {figure.goal:g} {'met' if figure.met else 'MISSED'}",
        )
    return shown


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Ratios over the peers as bars on a logarithmic axis, a black stroke at each goal, whiskers at the quartiles."""
    from matplotlib.figure import Figure as Canvas

    from genrl.plots import save

    drawn = [figure for figure in figures if figure.ratio is not None and figure.better == "higher"][::-1]
    canvas = Canvas(figsize=(8, 1.2 + 0.32 * max(1, len(drawn))), layout="constrained")
    axes = canvas.subplots()
    for place, figure in enumerate(drawn):
        ratio, (low, high) = figure.ratio or 1.0, figure.quartiles or (1.0, 1.0)
        axes.barh(place, ratio - 1, left=1, color="#56B4E9", height=0.7)
        axes.plot([low, high], [place, place], color="#0072B2", linewidth=3)
        if figure.goal is not None:
            axes.plot([figure.goal] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(drawn)), [f"{figure.name}: {figure.setting}" for figure in drawn])
    axes.set_xscale("log")
    axes.set_xlabel("times faster (or smaller) than the peer; black stroke: goal")
    axes.xaxis.set_major_formatter("{x:g}")
    save(canvas, path, dpi=150)
