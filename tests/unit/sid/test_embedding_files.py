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


def write(path, content):
    """Write an array, named tensors, columns of a table or bytes, as the name of the file says."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, np.array(content))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    elif content is not None:
        pq.write_table(pa.table(content), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.npy", MATRIX),
        ("e.safetensors", {"e": torch.tensor(MATRIX, dtype=torch.float16)}),
        ("e.parquet", {"item_id": [3, 9, 1, 2], "vector": [MATRIX[2], [9.0, 9.0], MATRIX[0], MATRIX[1]]}),
    ],
)
def test_every_form_gives_the_same_matrix(tmp_path, name, content):
    found = read_embeddings(write(tmp_path / name, content), CATALOG)
    assert found.dtype == torch.float32
    assert_same(found, torch.tensor(MATRIX))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("e.npy", [{"a": 1}], r"e\.npy: not a plain \.npy array"),  # a pickle
        ("e.npy", b"nothing of the kind", r"e\.npy"),
        ("e.npy", b"PK\x03\x04 an archive", r"e\.npy: not a plain \.npy array"),
        ("e.npy", b"\x93NUMPY\x01\x00\x04\x00{(\n\n", r"e\.npy: not a plain \.npy array"),  # brackets are left open
        ("e.safetensors", b"nothing of the kind", r"e\.safetensors"),
        ("e.parquet", b"nothing of the kind", r"e\.parquet"),
        ("e.npy", MATRIX[:2], r"shape \[2, 2\], expected \[3, d\]"),
        ("e.npy", [1.0, 2.0, 3.0], r"shape \[3\], expected \[3, d\]"),
        ("e.npy", [[0.0], [float("nan")], [1.0]], "embedding of item '2' is not finite"),
        ("e.parquet", {"item_id": [1, 3], "vector": [[1.0], [2.0]]}, r"no embedding for 1 of 3 items, e\.g\. '2'"),
        ("e.parquet", {"item_id": [1, 2, 3], "vector": [[1.0], [2.0, 3.0], [2.0]]}, "not one list of numbers per item"),
        ("e.parquet", {"item_id": [1], "vector": [[1.0]], "more": [1]}, "columns item_id, vector, more"),
        ("e.safetensors", {"a": torch.ones(3, 1), "b": torch.ones(3, 1)}, r"holds 2 tensors \(a, b\)"),
        ("gone.parquet", None, "no such file"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        read_embeddings(write(tmp_path / name, content), CATALOG)


def test_a_form_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match=r"no known form.*\.npy, \.safetensors, \.parquet"):
        read_embeddings("e.txt", CATALOG)
