"""The table of SID builders; plug-ins add theirs under the entry-point group `genrl.sid_builders`."""

from __future__ import annotations

from torch import Tensor

from genrl.registry import Registry

Codes = tuple[Tensor, tuple[int, ...]]
"""[I, K] int64 codes of every catalogue row, and the size of each of the K codebooks."""

SID_BUILDERS: Registry[Codes] = Registry("SID builder", "genrl.sid_builders")
