"""Semantic IDs: how items become short sequences of codes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genrl.catalog.dataset import Dataset
from genrl.sid import kmeans, published  # noqa: F401 (their decorators register the built-in builders)
from genrl.sid.embed import EmbeddingConfig
from genrl.sid.registry import SID_BUILDERS, SidConfig
from genrl.sid.table import CollisionReport, SidTable, make_table

__all__ = ["SID_BUILDERS", "CollisionReport", "SidConfig", "SidTable", "build_sid_table", "make_table", "sources"]


def build_sid_table(sid: Mapping[str, Any], dataset: Dataset) -> SidTable:
    """Give every item its Semantic ID by a builder and its options; only roles TRAIN and HISTORY may shape codes.

    Raises:
        UnknownComponentError: if there is no such builder.
        ConfigError: if options do not fit the builder or the data set.
        DataError: if a file cannot be used.

    Example:
        >>> from genrl.catalog import load_dataset
        >>> from genrl.config.schema import DataConfig, ToyConfig
        >>> dataset = load_dataset(DataConfig(toy=ToyConfig(users=60, items=60)))
        >>> table = build_sid_table({"name": "kmeans", "levels": 2, "codes": 8}, dataset)
        >>> len(table), table.report.distinct
        (60, 60)
    """
    options = dict(sid)
    return SID_BUILDERS.build(options.pop("name"), options, dataset=dataset)


def sources(sid: Mapping[str, Any]) -> dict[str, Path]:
    """What a table is made of besides the data set: dotted option -> file or folder; nothing is checked to exist.

    These are the options of a builder that are called `path`, and a text encoder that is read from a folder.

    Example:
        >>> sources({"name": "import", "path": "beauty.index.json"})
        {'sid.path': PosixPath('beauty.index.json')}
    """
    options = dict(sid)
    filled = SID_BUILDERS.options(options.pop("name"), options)
    named = dict(_paths(asdict(filled), "sid.")) if filled else {}
    embedding = getattr(filled, "embedding", None)
    if isinstance(embedding, EmbeddingConfig) and embedding.encoder_folder:
        named["sid.embedding.text_encoder"] = embedding.encoder_folder
    return {option: Path(path).expanduser() for option, path in named.items()}


def embedding_of(sid: Mapping[str, Any]) -> EmbeddingConfig:
    """The embeddings that the codes of section `sid` are fitted on; of a table that was fitted elsewhere the default.

    Example:
        >>> embedding_of({"name": "kmeans", "embedding": {"source": "collaborative"}}).source
        'collaborative'
    """
    options = dict(sid)
    filled = SID_BUILDERS.options(options.pop("name"), options)
    embedding = getattr(filled, "embedding", None)
    return embedding if isinstance(embedding, EmbeddingConfig) else EmbeddingConfig()


def _paths(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
        elif name == "path" and value:
            yield f"{prefix}{name}", value
