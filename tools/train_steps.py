"""Train each stage of a configuration as `fit` does, and measure it: `python tools/train_steps.py --config FILE`.

Written are tokens per second without the first step, and the peak of memory beside what `genrl plan` says of it. Stages
should be a few steps long; overrides say so, as for `python -m genrl fit`.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.figures import card, now
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from genrl.batches import Completions
from genrl.cli.configuration import REGISTRIES
from genrl.config import load_config
from genrl.config.schema import RunConfig
from genrl.errors import ConfigError, GenRLError
from genrl.files import write_json
from genrl.objectives import Objective
from genrl.prompts.packing import PackedBatch
from genrl.runs.plan import plan
from genrl.runs.session import Session
from genrl.runs.stage import build_objective, run_stage, stages_of
from genrl.training.fitting import find_rank, quiet_libraries
from genrl.training.rl import Part

GIB = 2**30


class Stopwatch(Callback):
    """Tokens that went through the model in updates, and when each optimiser step ended."""

    def __init__(self) -> None:
        self.step, self.tokens = 0, 0
        self.ends: list[tuple[float, int]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Count a micro-batch, and note the time behind the last one of a step."""
        self.tokens += tokens_of(batch)
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.ends.append((now(), self.tokens))

    def read(self) -> dict[str, Any]:
        """Steps, and tokens per second from the end of the first one to that of the last; None for a single step."""
        (began, first), (ended, last) = self.ends[0], self.ends[-1]
        speed = (last - first) / (ended - began) if len(self.ends) > 1 else None
        return {"steps": len(self.ends), "tokens": self.tokens, "tokens_per_second": speed}


def tokens_of(batch: PackedBatch | Part) -> int:
    """Tokens without padding: of texts, or of prompts, each once, and of what was written behind them."""
    if isinstance(batch, PackedBatch):
        return int((batch.segments >= 0).sum())
    completions: Completions = batch.experience.completions
    return int(batch.requests.mask.sum()) + int(completions.written.sum())


def main(words: list[str] | None = None) -> int:
    """Train, show and write; 2 for what a user can mend."""
    options = _parser().parse_args(words)
    try:
        found = measure(load_config(options.config, None, options.overrides, REGISTRIES), options.gpu_memory)
    except GenRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, stage in found["stages"].items():
        print(f"{name}: {stage}")
    if options.json:
        write_json(options.json, found)
    return 0


def measure(config: RunConfig, gibibytes: float | None = None) -> dict[str, Any]:
    """What each stage took, and what was planned for it; memory in MiB.

    Args:
        config: of a language model, on one device.
        gibibytes: memory of the GPU that may be used; None: all.

    Raises:
        ConfigError: for a GPU that is not there, and stages that are finished.
    """
    quiet_libraries()
    gpu = config.trainer.accelerator == "gpu"
    if (gpu or gibibytes is not None) and not torch.cuda.is_available():
        raise ConfigError("PyTorch finds no GPU here. Use trainer.accelerator=cpu, and leave out --gpu-memory.")
    if gibibytes is not None:
        limit(gibibytes)
    find_rank(config.trainer)
    session, objective = Session.build(config), build_objective(config)
    needs = planned(session, objective)
    stages, found = stages_of(session, objective), {}
    for stage in stages:
        if stage.finished:
            raise ConfigError(f"{stage.folder} is finished, so nothing would be measured. Give another output=FOLDER.")
        watch = Stopwatch()
        cost = run_stage(
            replace(stage, callbacks=(*stage.callbacks, watch)), Console(quiet=True), last=stage is stages[-1]
        )["stage"]
        found[stage.name] = watch.read() | {
            "seconds": cost["seconds"],
            "planned_mib": planned_for(needs, stage.name),
            "peak_mib": cost["peak_mib"],
            "reserved_mib": round(torch.cuda.max_memory_reserved() / 2**20, 1) if gpu else None,
        }
        if stage is not stages[-1]:
            stage.session.learner.forget()
    return {"machine": {"card": card()} if gpu else {}, "limit_gib": gibibytes, "stages": found}


def planned(session: Session, objective: Objective) -> dict[str, float]:
    """MiB of tensors that the memory plan says of each part of a run."""
    return {need.part: need.total / 2**20 for need in plan(session, objective).needs}


def planned_for(needs: dict[str, float], stage: str) -> float | None:
    """MiB at the peak of a stage: of its own parts or of the rankings that validate it; None if nothing is planned."""
    own = [size for part, size in needs.items() if part.split()[0] in (stage, "rankings")]
    return round(max(own), 1) if own else None


def limit(gibibytes: float) -> None:
    """Have this process take no more of the GPU for tensors, as if the card were smaller."""
    whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gibibytes * GIB / whole))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="as of `genrl fit`; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any options")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of the GPU, use no more than that")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
