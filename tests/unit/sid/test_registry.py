from pathlib import Path

import pytest
import torch

from genrl.catalog import load_dataset
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError, UnknownComponentError
from genrl.sid import SID_BUILDERS, SidTable, build_sid_table, make_table, sources
from tests.helpers import assert_same

KMEANS = {"name": "kmeans"}


@pytest.fixture(scope="module")
def toy():
    return load_dataset(DataConfig(toy=ToyConfig(world="toy", users=100)))


def test_the_default_toy_table_needs_no_collision_level_and_its_first_codes_are_the_categories(toy):
    table = build_sid_table(KMEANS, toy)
    assert table.codebook_sizes == (12, 12, 12)
    assert table.report.colliding_items == 0
    assert len(torch.stack([table.codes[:, 0], toy.catalog.categories], dim=1).unique(dim=0)) == 12


@pytest.mark.parametrize("source", ["collaborative", "text", "both"])
def test_tables_of_every_source_are_reproducible_and_complete(toy, source, tmp_path):
    config = {**KMEANS, "codes": 10, "levels": 2, "embedding": {"source": source}}
    table = build_sid_table(config, toy)
    assert table.report.distinct == len(toy.catalog)
    assert_same(build_sid_table(config, toy).codes, table.codes)
    table.save(tmp_path / "t.safetensors")
    assert_same(SidTable.load(tmp_path / "t.safetensors", toy.catalog).codes, table.codes)


def test_unknown_builders_are_named():
    with pytest.raises(UnknownComponentError, match=r"unknown SID builder 'kmean'.*import, kmeans"):
        build_sid_table({"name": "kmean"}, None)


def test_a_plugin_adds_a_builder(toy):
    @SID_BUILDERS.register("one_code_per_item")
    def build(dataset):
        return make_table(torch.arange(len(dataset.catalog))[:, None], (len(dataset.catalog),), dataset.catalog)

    try:
        table = build_sid_table({"name": "one_code_per_item"}, toy)
        assert table.codebook_sizes == (288,)
        assert sources({"name": "one_code_per_item"}) == {}
    finally:
        del SID_BUILDERS._entries["one_code_per_item"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codes": 0}, "option 'codes': 0 must be from 2 to 65536"),
        ({"levels": 27}, "option 'levels': 27 must be from 1 to 26"),
        ({"embedding": {"window": 0}}, "option 'embedding.window': 0 must be at least 1"),
        ({"embedding": {"source": "file"}}, "sid.embedding.path is needed by sid.embedding.source=file"),
        ({"embedding": {"path": "a.npy"}}, "not read with sid.embedding.source=text. Add sid.embedding.source=file"),
        ({"path": "a.json"}, "no option 'path'. It belongs to import."),
        ({"name": "import"}, "needs the option 'path': give the JSON file"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        build_sid_table({**KMEANS, **options}, None)


@pytest.mark.parametrize(
    ("sid", "named"),
    [
        ({}, []),
        ({"name": "import", "path": "~/a.json"}, ["sid.path"]),
        ({"embedding": {"source": "file", "text_encoder": "unread", "path": "a.npy"}}, ["sid.embedding.path"]),
        ({"embedding": {"source": "both", "text_encoder": "folder"}}, ["sid.embedding.text_encoder"]),
        ({"embedding": {"source": "collaborative", "text_encoder": "unread"}}, []),
    ],
)
def test_sources_are_the_files_that_a_builder_reads(sid, named):
    found = sources({**KMEANS, **sid})
    assert list(found) == list(named)
    assert found.get("sid.path", Path.home() / "a.json") == Path.home() / "a.json"
