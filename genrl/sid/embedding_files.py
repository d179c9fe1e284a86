"""Item embeddings made elsewhere: .npy, .safetensors or parquet."""

from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from genrl.catalog.items import Catalog
from genrl.errors import ConfigError, DataError
from genrl.given import regular


def read_embeddings(path: str, catalog: Catalog) -> Tensor:
    """Read one vector per item: [I, D] float32.

    .npy and .safetensors hold a matrix [items, d] in the order of the catalogue (the order of the item table); parquet
    holds a column of item ids and a column of lists, in any order. Pickled arrays are refused: they can run code.

    Raises:
        ConfigError: if the form of the file is unknown.
        DataError: if the file cannot be read or does not fit the catalogue.
    """
    readers: dict[str, Callable[[Path, Catalog], Tensor]] = {
        ".npy": _read_numpy,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
    }
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise ConfigError(f"sid.embedding.path: {path} has no known form. Allowed: {', '.join(readers)}.")
    file = regular(path, "sid.embedding.path")
    matrix = reader(file, catalog)
    if matrix.dim() != 2 or len(matrix) != len(catalog):
        raise DataError(
            f"{file}: shape {list(matrix.shape)}, expected [{len(catalog)}, d]: one row per catalogue item. Build the "
            f"embeddings for this catalogue, or store them as parquet with item ids (a k-core filter drops items)."
        )
    finite = torch.isfinite(matrix).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise DataError(f"{file}: the embedding of item {catalog.item_ids[row]!r} is not finite. Build it again.")
    return matrix.float()


def _read_numpy(file: Path, catalog: Catalog) -> Tensor:
    try:
        matrix = np.lib.format.open_memmap(file, mode="r")  # no pickles, no archives, no more than the file has
        return torch.from_numpy(np.array(matrix, dtype=np.float32))
    except (ValueError, TypeError, EOFError, OSError, OverflowError, SyntaxError, TokenError) as error:
        raise DataError(f"{file}: not a plain .npy array of numbers ({error}). Save it with numpy.save.") from error


def _read_safetensors(file: Path, catalog: Catalog) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: damaged or no safetensors file ({error}). Build it again.") from error
    if len(tensors) != 1:
        raise DataError(f"{file}: holds {len(tensors)} tensors ({', '.join(tensors)}). Store one matrix [items, d].")
    return next(iter(tensors.values()))


def _read_parquet(file: Path, catalog: Catalog) -> Tensor:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a parquet file ({error}). Build it again.") from error
    vectors = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    ids = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    if len(vectors) != 1 or len(ids) != 1:
        raise DataError(
            f"{file}: columns {', '.join(table.column_names)}. Expected one column of item ids and one column of lists."
        )
    names = [str(name) for name in table.column(ids[0]).to_pylist()]
    rows = {name: row for row, name in enumerate(names)}
    missing = [item_id for item_id in catalog.item_ids if item_id not in rows]
    if missing:
        raise DataError(
            f"{file}: no embedding for {len(missing):,} of {len(catalog):,} items, e.g. {missing[0]!r}. Add them."
        )
    lists = table.column(vectors[0]).to_pylist()
    try:
        return torch.from_numpy(np.asarray([lists[rows[item_id]] for item_id in catalog.item_ids], dtype=np.float32))
    except (ValueError, TypeError) as error:
        wrong = f"{file}: column {vectors[0]!r} is not one list of numbers per item, all equally long."
        raise DataError(wrong) from error
