"""Whether an installation computes what it should: genrl against golden values, and against itself another way."""

from genrl.selftest.checks import CHECKS, Check, Outcome, find_device, run
from genrl.selftest.world import Found

__all__ = ["CHECKS", "Check", "Found", "Outcome", "find_device", "run"]
