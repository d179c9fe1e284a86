"""Benchmarks by name."""

from typing import Any

from genrl.registry import Registry

BENCHMARKS: Registry[Any] = Registry("benchmark", "genrl.benchmarks")
