"""Small files of the user's kind, written into a test's own folder."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

from genrl.catalog import load_dataset
from genrl.config.schema import ColumnsConfig, DataConfig

COLUMNS = ("user_id", "item_id", "timestamp")


def rows_of(histories):
    """{user: "abc"} -> rows with one time unit between neighbours, users interleaved in time."""
    return [
        (user, item, 10 * place + number)
        for number, (user, items) in enumerate(histories.items())
        for place, item in enumerate(items)
    ]


def write(path, rows, columns=COLUMNS):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[n] for row in rows] for n, name in enumerate(columns)}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])
    else:
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return str(path)


def files_config(interactions, **options):
    options.setdefault("columns", ColumnsConfig())
    return DataConfig(source="files", interactions=str(interactions), **options)


def load(tmp_path, histories, **options):
    return load_dataset(files_config(write(tmp_path / "log.parquet", rows_of(histories)), **options))
