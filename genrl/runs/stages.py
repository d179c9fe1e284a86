"""The supervised stages of a configuration."""

from genrl.config import RunConfig
from genrl.layouts import thinks

SUPERVISED = ("align", "activate")
"""Stages before `rl`, in order."""


def supervised_stages(config: RunConfig) -> list[str]:
    """The supervised stages that a configuration runs; without thinking there is nothing to activate.

    Example:
        >>> supervised_stages(RunConfig(stages=["align", "activate", "rl"], layout={"name": "sid"}))
        ['align']
    """
    return [stage for stage in SUPERVISED if stage in config.stages and (stage != "activate" or thinks(config))]
