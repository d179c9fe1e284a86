import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrl.catalog import Role, load_dataset
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError, DataError
from genrl.sid.embed import EmbeddingConfig, cooccurrence, embed_items, text_embeddings
from tests.helpers import assert_same
from tests.unit.recommenders.problems import dataset_of

COLLABORATIVE = EmbeddingConfig(source="collaborative", dimensions=2)


@pytest.fixture(scope="module")
def toy():
    return load_dataset(DataConfig(toy=ToyConfig(world="toy", users=200, items=60)))


def pairs(dataset, window):
    return cooccurrence(dataset.sequences, len(dataset.catalog), window).toarray().tolist()


def test_cooccurrence_by_hand():
    dataset = dataset_of([[0, 1, 2], [1, 0, 0]])
    assert pairs(dataset, 1) == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    assert pairs(dataset, 2) == [[0, 3, 1], [3, 0, 1], [1, 1, 0]]
    assert pairs(dataset, 99) == pairs(dataset, 2)
    only_training = dataset_of([[0, 1, 2, 3, 4, 5]], ["htrveh"])
    assert pairs(only_training, 5) == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], *[[0] * 6] * 4]
    with pytest.raises(DataError, match="no two items co-occur in the training part"):
        embed_items(COLLABORATIVE, dataset_of([[0], [1]]))


@pytest.mark.parametrize("source", ["collaborative", "both"])
def test_rl_validation_and_test_items_do_not_shape_the_embeddings(toy, source):
    config = EmbeddingConfig(source=source, dimensions=8)
    items = toy.sequences.items.clone()
    hidden = toy.sequences.roles != Role.TRAIN
    items[hidden] = items[hidden].flip(0)
    changed = replace(toy, sequences=replace(toy.sequences, items=items))
    assert_same(embed_items(config, toy), embed_items(config, changed), tolerance=0)


def test_collaborative_embeddings_put_items_bought_together_close():
    generator = np.random.default_rng(0)
    histories = [(generator.permutation(6) + 6 * (user % 2)).tolist() for user in range(60)]
    embeddings = embed_items(EmbeddingConfig(source="collaborative", dimensions=3), dataset_of(histories))
    close = embeddings @ embeddings.T
    assert float(close[:6, :6].mean()) > 0.3
    assert float(close[:6, 6:].abs().mean()) < 0.05
    assert_same(embeddings.norm(dim=1), torch.ones(12))


def test_an_item_without_pairs_stands_by_its_text_neighbours_or_its_category():
    titles = ["red tea pot"] * 3 + ["bass drum"] * 3 + ["green tea", "drum"]
    histories = [[0, 1, 2], [3, 4, 5]] * 5
    embeddings = embed_items(COLLABORATIVE, dataset_of(histories, size=8, titles=titles))
    close = embeddings @ embeddings.T
    assert float(close[6, :3].mean()) > float(close[6, 3:6].mean()) + 0.3
    assert float(close[7, 3:6].mean()) > float(close[7, :3].mean()) + 0.3
    categories = ["Tea"] * 3 + ["Drums"] * 3 + ["Tea", None]
    embeddings = embed_items(COLLABORATIVE, dataset_of(histories, size=8, categories=categories))
    assert_same(embeddings[6], torch.nn.functional.normalize(embeddings[:3].mean(dim=0), dim=0))
    assert_same(embeddings[7], torch.nn.functional.normalize(embeddings[:6].mean(dim=0), dim=0))


def test_text_embeddings_put_like_titles_close_and_keep_empty_ones_at_zero():
    texts = ["red tea pot", "blue tea pot", "bass drum", "snare drum", ""]
    embeddings = text_embeddings(texts, EmbeddingConfig(source="text", dimensions=3))
    close = embeddings @ embeddings.T
    assert float(close[0, 1]) > 0.7 > 0.2 > float(close[0, 2])
    assert_same(embeddings[4], torch.zeros(3))
    with pytest.raises(DataError, match=r"no item has any.*source=collaborative"):
        text_embeddings(["", " "], EmbeddingConfig(source="text"))


def test_both_joins_the_two_and_they_are_the_same_every_time(toy):
    parts = [embed_items(EmbeddingConfig(source=source, dimensions=5), toy) for source in ("collaborative", "text")]
    assert_same(embed_items(EmbeddingConfig(source="both", dimensions=5), toy), torch.cat(parts, dim=1), tolerance=0)


@pytest.mark.parametrize("source", ["collaborative", "text"])
def test_dimensions_are_an_upper_bound(toy, source):
    assert embed_items(EmbeddingConfig(source=source, dimensions=7), toy).shape == (60, 7)
    wide = embed_items(EmbeddingConfig(source=source, dimensions=500), toy)
    assert wide.shape[0] == 60
    assert wide.shape[1] < 60
    assert torch.isfinite(wide).all()


def test_a_local_sentence_encoder_is_used_offline_and_what_is_missing_is_named(monkeypatch):
    class Encoder:
        def __init__(self, folder, local_files_only):
            assert local_files_only
            if folder != "folder":
                raise OSError("no such folder")

        def encode(self, texts, **options):
            return torch.tensor([[3.0, 4.0]] * len(texts))

    here, gone = (EmbeddingConfig(source="text", text_encoder=folder) for folder in ("folder", "gone"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    assert_same(text_embeddings(["a", "b"], here), [[0.6, 0.8]] * 2, tolerance=1e-6)
    with pytest.raises(ConfigError, match=r"text_encoder: 'gone' is no sentence-transformers model \(no such"):
        text_embeddings(["a"], gone)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install genrl\[text\]"):
        text_embeddings(["a"], here)
