import os

import pytest

from genrl.catalog.reading import read_table
from genrl.errors import DataError
from tests.unit.catalog.files import write

ROWS = [("u1", "007", 3), ("u2", "NA", 1)]


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.jsonl"])
def test_every_form_gives_the_same_ids(tmp_path, name):
    table = read_table(write(tmp_path / name, ROWS), "data.interactions")
    assert table.column("item_id", "x").to_pylist() == ["007", "NA"]
    assert [int(value) for value in table.column("timestamp", "x").to_pylist()] == [3, 1]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b.csv", ROWS[1:])
    write(tmp_path / "a.csv", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    table = read_table(str(tmp_path), "data.interactions")
    assert table.column("user_id", "x").to_pylist() == ["u1", "u2"]
    assert table.place(0).endswith("a.csv:2")
    assert table.place(1).endswith("b.csv:2")


def test_nothing_is_written_beside_the_files(tmp_path):
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        write(tmp_path / name, ROWS)
    before = sorted(os.listdir(tmp_path))
    for name in before:
        read_table(str(tmp_path / name), "data.interactions")
    assert sorted(os.listdir(tmp_path)) == before


def test_an_edited_file_is_read_anew(tmp_path):
    path = tmp_path / "log.csv"
    write(path, ROWS)
    read_table(str(path), "data.interactions")
    stamp = os.stat(path).st_mtime_ns
    write(path, [("u9", "1", 1), ("u8", "2", 2)])
    os.utime(path, ns=(stamp, stamp))
    assert read_table(str(path), "data.interactions").column("user_id", "x").to_pylist() == ["u9", "u8"]


def test_reading_is_quiet(tmp_path, capfd):
    read_table(write(tmp_path / "log.jsonl", ROWS), "data.interactions")
    assert capfd.readouterr() == ("", "")


def test_a_missing_column_is_named_with_a_suggestion(tmp_path):
    table = read_table(write(tmp_path / "log.csv", ROWS), "data.interactions")
    with pytest.raises(DataError, match=r"log\.csv: no column 'item'.*data\.columns\.item.*'item_id'.*timestamp"):
        table.column("item", "data.columns.item")


def test_lines_are_counted_as_a_person_would(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('user_id,title\nu1,"two\nlines"\n\nu2,x\n')
    table = read_table(str(path), "data.items")
    places = [table.place(row).rsplit(":", 1)[1] for row in range(len(table))]
    assert places == ["2", "5"], "the title of line 2 spans two lines, line 4 is blank"
    jsonl = tmp_path / "log.jsonl"
    jsonl.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_table(str(jsonl), "data.items").place(1).endswith("log.jsonl:3")
    assert read_table(write(tmp_path / "t.parquet", ROWS), "data.items").place(1).endswith("t.parquet, row 2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"user_id": "u1"}\n{"user_id": oops}\n', r"log\.jsonl:2: not JSON"),
        ('{"user_id": "u1"}\n[1, 2]\n', r"log\.jsonl:2: a list, not an object"),
        ('{"user_id": "u1"}\n\n{"user_id": "u2"\n', r"log\.jsonl:3: not JSON"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path, content, said):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_table(str(path), "data.interactions")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty file"),
        ("user_id,user_id\na,b\n", r":1: column 'user_id' is named twice"),
        ("user_id,item_id\na,b\nc,d,e,f\n", r"log\.csv: cannot be read as csv: .*line 3"),
        ("user_id,item_id\n", r"log\.csv: no rows"),
        ("\n\n", "empty file"),
    ],
)
def test_a_broken_csv_file_is_named(tmp_path, content, said):
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_table(str(path), "data.interactions")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\nu1,i1\n", encoding="utf-8-sig")
    assert read_table(str(path), "data.interactions").data.column_names == ["user_id", "item_id"]


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"log\.parquet: cannot be read as parquet"):
        read_table(str(path), "data.interactions")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.parquet", "no such file or folder"),
        ("log.xlsx", "unknown form '.xlsx'"),
        ("folder", "no file of a known form"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, said):
    (tmp_path / "log.xlsx").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=said):
        read_table(str(tmp_path / name), "data.interactions")


def test_a_folder_of_several_forms_is_refused(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.parquet", ROWS)
    with pytest.raises(DataError, match=r"several forms \(csv, parquet\)"):
        read_table(str(tmp_path), "data.interactions")


def test_an_unreachable_hub_data_set_is_named(monkeypatch):
    import datasets

    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"owner/name: neither a file.*no network"):
        read_table("owner/name", "data.interactions")


def test_a_hub_data_set_is_read_by_name(monkeypatch):
    import datasets

    made = datasets.Dataset.from_dict({"user_id": ["a"], "item_id": ["b"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: made)
    table = read_table("owner/name", "data.interactions")
    assert table.place(0) == "owner/name, row 1"
    assert table.column("item_id", "x").to_pylist() == ["b"]
