"""The table of SID builders; plug-ins add theirs under the entry-point group `genrl.sid_builders`."""

from dataclasses import dataclass
from typing import Literal

from genrl.registry import Registry
from genrl.sid.table import SidTable

SID_BUILDERS: Registry[SidTable] = Registry("SID builder", "genrl.sid_builders", SidTable)
"""Called as `builder(config, dataset=dataset)`."""


@dataclass(frozen=True)
class SidConfig:
    """What builders share."""

    collisions: Literal["token", "keep"] = "token"
    """Append a further code that tells colliding items apart, or let them share a SID."""
