import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from genrl.catalog import Catalog
from genrl.errors import ConfigError, DataError
from genrl.sid.embedding_files import read_embeddings
from tests.helpers import assert_same

CATALOG = Catalog.from_table(["1", "2", "3"])
MATRIX = [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]


def parquet(path, ids, vectors, **more):
    pq.write_table(pa.table({"item_id": ids, "vector": vectors, **more}), path)
    return str(path)


def test_every_form_gives_the_same_matrix(tmp_path):
    np.save(tmp_path / "e.npy", np.array(MATRIX))
    save_file({"e": torch.tensor(MATRIX, dtype=torch.float16)}, tmp_path / "e.safetensors")
    parquet(tmp_path / "e.parquet", [3, 9, 1, 2], [MATRIX[2], [9.0, 9.0], MATRIX[0], MATRIX[1]])
    for name in ("e.npy", "e.safetensors", "e.parquet"):
        found = read_embeddings(str(tmp_path / name), CATALOG)
        assert found.dtype == torch.float32
        assert_same(found, torch.tensor(MATRIX))


def test_a_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"e\.npy: not a plain \.npy array"):
        read_embeddings(str(tmp_path / "e.npy"), CATALOG)


@pytest.mark.parametrize("name", ["e.npy", "e.safetensors", "e.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=name):
        read_embeddings(str(tmp_path / name), CATALOG)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (MATRIX[:2], r"shape \[2, 2\], expected \[3, d\]"),
        ([1.0, 2.0, 3.0], r"shape \[3\], expected \[3, d\]"),
        ([[0.0], [float("nan")], [1.0]], "embedding of item '2' is not finite"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(tmp_path, matrix, said):
    np.save(tmp_path / "e.npy", np.array(matrix))
    with pytest.raises(DataError, match=said):
        read_embeddings(str(tmp_path / "e.npy"), CATALOG)


def test_parquet_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no embedding for 1 of 3 items, e\.g\. '2'"):
        read_embeddings(parquet(tmp_path / "a.parquet", [1, 3], [[1.0], [2.0]]), CATALOG)
    with pytest.raises(DataError, match="not one list of numbers per item"):
        read_embeddings(parquet(tmp_path / "b.parquet", [1, 2, 3], [[1.0], [2.0, 3.0], [2.0]]), CATALOG)
    with pytest.raises(DataError, match="columns item_id, vector, more"):
        read_embeddings(parquet(tmp_path / "c.parquet", [1, 2, 3], MATRIX, more=[1, 2, 3]), CATALOG)


def test_several_tensors_are_refused(tmp_path):
    save_file({"a": torch.ones(3, 1), "b": torch.ones(3, 1)}, tmp_path / "e.safetensors")
    with pytest.raises(DataError, match=r"holds 2 tensors \(a, b\)"):
        read_embeddings(str(tmp_path / "e.safetensors"), CATALOG)


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("e.txt", ConfigError, r"no known form.*\.npy, \.safetensors, \.parquet"),
        ("gone.npy", DataError, "no such file"),
    ],
)
def test_paths_are_checked(path, error, said):
    with pytest.raises(error, match=said):
        read_embeddings(path, CATALOG)
