"""Published benchmarks: their files, their metrics, and a local checkpoint run under their protocol."""

from genrl.benchmarks.registry import BENCHMARKS

# isort: split
from genrl.benchmarks.recif import benchmark as recif_benchmark  # registers itself

__all__ = ["BENCHMARKS", "recif_benchmark"]
