"""The checks of `genrl selftest`: what each compares, how far apart two results may be, and how far apart they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

from genrl.config.schema import RunConfig
from genrl.errors import ConfigError, GenRLError, UnsupportedError
from genrl.selftest import engine, low_precision, whole_runs
from genrl.selftest.golden import golden_difference
from genrl.selftest.world import Found, World


@dataclass(frozen=True)
class Check:
    """One comparison."""

    about: str
    """What is compared with what."""
    compare: Callable[[World], Found]
    allowed: float
    """Largest difference that is in order; 0: the same bits."""


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    name: str
    check: Check
    found: Found | None
    """None: it could not be run, or ended in an error."""
    seconds: float
    trouble: str = ""
    """Why there is no difference."""
    left_out: bool = False
    """Whether that is because something optional is not installed."""

    @property
    def passed(self) -> bool:
        """Whether the difference is small enough; NaN is not."""
        return self.found is not None and self.found.difference <= self.check.allowed


CHECKS: dict[str, Check] = {
    "golden": Check("loss and gradient of every objective, with given values, float64", golden_difference, 1e-9),
    "trie": Check("probabilities of all items of the catalogue, with 1", engine.total_probability, 1e-5),
    "decode": Check("log-probabilities of sampling, with those of scoring", engine.sampled_and_scored, 2e-5),
    "search": Check("exact rankings, with the scores of all items one by one", engine.searched_and_enumerated, 2e-5),
    "padding": Check("scores behind more padding, with those behind less", engine.padded, 2e-5),
    "order": Check("scores of requests in another order, with the same", engine.reordered, 2e-5),
    "micro-batch": Check("weights after updates in parts, with those in one part", whole_runs.micro_batches, 2e-5),
    "resume": Check("weights of a run that was cut and resumed, with one that went through", whole_runs.resumed, 0.0),
    "world": Check("weights of a run in two processes, with those of one", whole_runs.two_processes, 2e-5),
    "bf16": Check("scores in bfloat16, with those in float32, mean", low_precision.bfloat16, 0.1),
    "nf4": Check("gradients through 4-bit weights, with those of the unpacked ones", low_precision.nf4, 0.02),
}
"""Name -> check, in the order they run."""


def run(compose: Callable[[Sequence[str]], RunConfig], device: torch.device, names: Sequence[str]) -> Iterator[Outcome]:
    """Run checks one by one, each outcome as soon as it is there.

    Args:
        compose: `key=value` texts -> a checked configuration.
        device: where the engine computes; whole runs are on the CPU, where results repeat to the bit.
        names: keys of `CHECKS`.
    """
    with TemporaryDirectory(prefix="genrl-selftest-") as folder, torch.random.fork_rng(devices=[]):
        world = World(compose, device, folder)
        for name in names:
            check, begun = CHECKS[name], time.monotonic()
            try:
                found = check.compare(world)
            except UnsupportedError as error:
                yield Outcome(name, check, None, time.monotonic() - begun, str(error), left_out=True)
            except (GenRLError, RuntimeError, ValueError, OSError) as error:
                yield Outcome(name, check, None, time.monotonic() - begun, f"{type(error).__name__}: {error}")
            else:
                yield Outcome(name, check, found, time.monotonic() - begun)


def find_device(name: str) -> torch.device:
    """The device of that name, tried out.

    Raises:
        ConfigError: if this installation cannot compute there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}). Use --device cpu.") from error
    return device
