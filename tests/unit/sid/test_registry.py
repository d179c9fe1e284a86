from pathlib import Path

import pytest
import torch

from genrl.catalog import load_dataset
from genrl.config.schema import DataConfig, EmbeddingConfig, SidConfig, ToyConfig
from genrl.errors import UnknownComponentError
from genrl.sid import SID_BUILDERS, SidTable, build_sid_table, sources
from tests.helpers import assert_same


@pytest.fixture(scope="module")
def toy():
    return load_dataset(DataConfig(toy=ToyConfig(users=100)))


def test_the_default_toy_table_needs_no_collision_level(toy):
    table = build_sid_table(SidConfig(), toy)
    assert table.codebook_sizes == (12, 12, 12)
    assert table.report.colliding_items == 0


def test_first_codes_of_the_default_toy_table_are_the_categories(toy):
    first = build_sid_table(SidConfig(), toy).codes[:, 0]
    assert len(torch.stack([first, toy.catalog.categories], dim=1).unique(dim=0)) == 12


@pytest.mark.parametrize("source", ["collaborative", "text", "both"])
def test_tables_of_every_source_are_reproducible_and_complete(toy, source, tmp_path):
    config = SidConfig(codes=10, levels=2, embedding=EmbeddingConfig(source=source))
    table = build_sid_table(config, toy)
    assert table.report.distinct == len(toy.catalog)
    assert_same(build_sid_table(config, toy).codes, table.codes)
    table.save(tmp_path / "t.safetensors")
    assert_same(SidTable.load(tmp_path / "t.safetensors", toy.catalog).codes, table.codes)


def test_unknown_builders_are_named():
    with pytest.raises(
        UnknownComponentError, match=r"unknown SID builder 'kmean'.*Did you mean 'kmeans'.*import, kmeans"
    ):
        build_sid_table(SidConfig(builder="kmean"), None)


def test_a_plugin_adds_a_builder(toy):
    @SID_BUILDERS.register("one_code_per_item")
    def build(config, dataset):
        return torch.arange(len(dataset.catalog))[:, None], (len(dataset.catalog),)

    try:
        table = build_sid_table(SidConfig(builder="one_code_per_item"), toy)
        assert table.codebook_sizes == (288,)
    finally:
        del SID_BUILDERS._entries["one_code_per_item"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SidConfig(path="unread"), {}),
        (SidConfig(builder="import", path="a.json", embedding=EmbeddingConfig("file", path="unread")), ["sid.path"]),
        (SidConfig(embedding=EmbeddingConfig("file", text_encoder="unread", path="a.npy")), ["sid.embedding.path"]),
        (SidConfig(embedding=EmbeddingConfig("both", text_encoder="folder")), ["sid.embedding.text_encoder"]),
        (SidConfig(embedding=EmbeddingConfig("collaborative", text_encoder="unread")), []),
        (
            SidConfig(builder="mine", path="a", embedding=EmbeddingConfig("file", path="b")),
            ["sid.path", "sid.embedding.path"],
        ),
    ],
)
def test_sources_are_the_files_that_a_builder_reads(config, named):
    assert list(sources(config)) == list(named)


def test_sources_know_the_home_folder():
    assert sources(SidConfig(builder="import", path="~/a.json")) == {"sid.path": Path.home() / "a.json"}
