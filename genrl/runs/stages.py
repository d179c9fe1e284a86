"""The supervised stages of a configuration."""

from genrl.config import RunConfig
from genrl.layouts import thinks, writes_slates

SUPERVISED = ("align", "activate")
"""Stages before `rl`, in order."""


def supervised_stages(config: RunConfig) -> list[str]:
    """The supervised stages that a configuration runs; where completions are one item alone, `align` teaches it all.

    Example:
        >>> supervised_stages(RunConfig(stages=["align", "activate", "rl"], layout={"name": "sid"}))
        ['align']
    """
    more = thinks(config) or writes_slates(config)
    return [stage for stage in SUPERVISED if stage in config.stages and (stage != "activate" or more)]
