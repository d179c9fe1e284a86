"""Semantic IDs: how items become short sequences of codes."""

from __future__ import annotations

from pathlib import Path

from genrl.catalog.dataset import Dataset
from genrl.config.schema import SidConfig
from genrl.sid import kmeans, published  # noqa: F401 (their decorators register the built-in builders)
from genrl.sid.registry import SID_BUILDERS, Codes
from genrl.sid.table import CollisionReport, SidTable, make_table

__all__ = ["SID_BUILDERS", "Codes", "CollisionReport", "SidTable", "build_sid_table", "make_table", "sources"]


def build_sid_table(config: SidConfig, dataset: Dataset) -> SidTable:
    """Give every item of a data set its Semantic ID.

    Args:
        config: section `sid` of the configuration; `config.builder` names the builder.
        dataset: catalogue and sequences; only roles TRAIN and HISTORY may shape the codes.

    Raises:
        UnknownComponentError: if there is no such builder.
        ConfigError: if options do not fit the data set.
        DataError: if a file cannot be used.

    Example:
        >>> from genrl.catalog import load_dataset
        >>> from genrl.config.schema import DataConfig, SidConfig, ToyConfig
        >>> dataset = load_dataset(DataConfig(toy=ToyConfig(users=60, items=60)))
        >>> table = build_sid_table(SidConfig(levels=2, codes=8), dataset)
        >>> len(table), table.report.distinct
        (60, 60)
    """
    codes, sizes = SID_BUILDERS.entry(config.builder).factory(config, dataset)
    return make_table(codes, sizes, dataset.catalog, collisions=config.collisions)


def sources(config: SidConfig) -> dict[str, Path]:
    """What a table is made of besides the data set: option -> file or folder, as far as the builder reads it.

    Of a plug-in's builder we cannot know what it reads, so all that is set counts. Nothing is checked to exist.

    Example:
        >>> sources(SidConfig(builder="import", path="beauty.index.json"))
        {'sid.path': PosixPath('beauty.index.json')}
    """
    embedding, named = config.embedding, {}
    plugin = config.builder not in ("kmeans", "import")
    if config.builder != "kmeans":
        named["sid.path"] = config.path
    if embedding.source == "file" and (plugin or config.builder == "kmeans"):
        named["sid.embedding.path"] = embedding.path
    if embedding.source in ("text", "both") and embedding.text_encoder != "tfidf" and config.builder != "import":
        named["sid.embedding.text_encoder"] = embedding.text_encoder
    return {option: Path(path).expanduser() for option, path in named.items() if path}
