"""Configuration: the schema, and how files, flags and overrides become one checked RunConfig."""

from genrl.config.checks import STAGES, Problem
from genrl.config.load import Registries, load_config, run_folder, save_config
from genrl.config.schema import RunConfig
from genrl.config.typed import dotted_keys

__all__ = ["STAGES", "Problem", "Registries", "RunConfig", "dotted_keys", "load_config", "run_folder", "save_config"]
