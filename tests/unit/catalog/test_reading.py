import gzip
import os
import zipfile

import pyarrow as pa
import pytest

from genrl.catalog.reading import read_table
from genrl.errors import ConfigError, DataError
from tests.unit.catalog.files import COLUMNS, write

ROWS = [("u1", "007", 3), ("u2", "NA", 1)]

TORN = gzip.compress(b"user_id\na\n" * 99, mtime=0)[:-20]
"""A compressed file that ends too early; without the time, which would make another name of the test."""


def read(path, wanted=COLUMNS[:2], **options):
    table = read_table(str(path), "data.interactions", {name: f"data.columns.{name}" for name in wanted}, **options)
    columns = {
        name: [value for piece in pieces for value in (piece if isinstance(piece, list) else piece.to_pylist())]
        for name, pieces in table.columns.items()
    }
    return table, columns


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "options", "content"),
    [
        ("log.tsv", {}, "user_id\titem_id\nu1\t007\nu2\tNA\n"),
        ("log.inter", {}, "user_id:token\titem_id:token\tx:float_seq\nu1\t007\t1\nu2\tNA\t2\n"),
        ("log.item", {}, "item_id:token\tuser_id:token_seq\n007\tu1\nNA\tu2\n"),
        ("log.dat", {}, "user_id::item_id\nu1::007\nu2::NA\n"),
        ("log.csv", {"separator": ";"}, "user_id;item_id\nu1;007\nu2;NA\n"),
        ("log.csv", {"separator": "\\t"}, "user_id\titem_id\nu1\t007\nu2\tNA\n"),
        ("u.data", {"separator": "||"}, "user_id||item_id\nu1||007\nu2||NA\n"),
        ("log.dat", {"header": ["user_id", "x", "item_id"]}, "u1::5::007\n\nu2::3::NA\n"),
        ("log.csv", {"header": ["item_id", "user_id"]}, "\ufeff007,u1\nNA,u2\n"),
        ("log.csv", {"header": ["item_id", "user_id"]}, '007,"u1"\nNA,u2\n'),
        ("log.csv", {}, "\ufeffuser_id,item_id\r\nu1,007\r\nu2,NA\r\n"),
        ("log.csv", {}, ",user_id,,item_id,user_id2\n0,u1,,007,x\n1,u2,,NA,\n"),
        ("log.csv", {}, 'x,user_id,x,item_id\n1,u1,"a\nb",007\n,,,\n \n1,u2,2014-01-01,NA\n'),
        ("log.jsonl", {}, '{"user_id": "u1", "item_id": "007"}\n{"x": [9], "user_id": "u2", "item_id": "NA"}'),
    ],
)
@pytest.mark.parametrize(("suffix", "packing"), [("", None), (".gz", "gzip"), (".zst", "zstd")])
def test_separators_types_in_the_header_and_columns_nobody_asked_for(tmp_path, name, options, content, suffix, packing):
    path = tmp_path / (name + suffix)
    with pa.CompressedOutputStream(str(path), packing) if packing else path.open("wb") as stream:
        stream.write(content.encode())
    _, columns = read(path, **options)
    assert columns == {"user_id": ["u1", "u2"], "item_id": ["007", "NA"]}


def test_without_a_header_line_the_names_are_asked_for_and_lines_count_from_the_first(tmp_path):
    path = written(tmp_path / "log.dat", "u1::007\nu2::NA\nu3\n")
    with pytest.raises(DataError, match=r"is no header, name all columns: data\.interactions_header=\[user_id,"):
        read(path)
    names = ["user_id", "item_id"]
    with pytest.raises(DataError, match=r"log\.dat:3: 1 fields .*data\.interactions_header has 2.*all columns in data"):
        read(path, header=names)
    with pytest.raises(DataError, match=r"log\.dat \(data\.interactions_header\): no column 'time'"):
        read(path, ["time"], header=names)
    assert read(written(path, "\nu1::007\nu2::NA\n"), header=names)[0].place(1).endswith("log.dat:3")
    for name in ("log.parquet", "log.jsonl"):
        with pytest.raises(ConfigError, match=rf"_header is \['user_id', 'item_id'\], but .*{name} names its columns"):
            read(write(tmp_path / name, ROWS), header=names)


def test_a_file_is_read_by_its_content_now_and_nothing_is_written_beside(tmp_path, capfd):
    expected = {"user_id": ["u1", "u2"], "item_id": ["007", "NA"]}
    plain, parquet = tmp_path / "a[1].csv", tmp_path / "d.parquet"
    for path in (plain, parquet, tmp_path / "log.jsonl", tmp_path / "a1.csv"):
        table, columns = read(write(path, ROWS[:1] if path.name == "a1.csv" else ROWS), COLUMNS)
        assert columns["item_id"] == expected["item_id"][: len(table)]
        assert [int(value) for value in columns["timestamp"]] == [3, 1][: len(table)]
    assert len(os.listdir(tmp_path)) == 4
    assert capfd.readouterr() == ("", "")
    assert read(plain)[1] == expected  # that very file, and no pattern
    assert read(written(tmp_path / "b.csv", gzip.compress(plain.read_bytes())))[1] == expected
    assert read(written(tmp_path / "c.csv.gz", plain.read_bytes()))[1] == expected
    assert read(written(tmp_path / "e.parquet.gz", gzip.compress(parquet.read_bytes())))[1] == expected
    stamp = os.stat(plain).st_mtime_ns
    write(plain, [("u9", "1", 1), ("u8", "2", 2)])
    os.utime(plain, ns=(stamp, stamp))
    assert read(plain)[1]["user_id"] == ["u9", "u8"]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.dat", "log.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_encodings(tmp_path, name, encoding):
    text = '{"user_id": "Café", "other": "é"}\n' if name.endswith("jsonl") else "user_id\nCafé\n"
    path = written(tmp_path / name, text.encode(encoding))
    assert read(path, ["user_id"], encoding=encoding)[1]["user_id"] == ["Café"]
    with pytest.raises(DataError, match=r"log\.\w+(:[12]: (user_id is 'Caf.*not utf-8|not JSON)|: no column)"):
        read(path, ["user_id"])
    if name == "log.csv":  # in a column that nobody asked for it does not matter
        assert read(written(path, "user_id,title\nu1,Café\n".encode("latin-1")), ["user_id"])[1] == {"user_id": ["u1"]}
        with pytest.raises(DataError, match=r":2: title is 'Caf\\\\udce9', which is not utf-8\. Set data\.encoding"):
            read(path, ["title"])


@pytest.mark.parametrize(("option", "value"), [("encoding", "klingon"), ("encoding", "base64"), ("separator", "")])
def test_an_encoding_or_a_separator_that_cannot_be_is_refused(tmp_path, option, value):
    with pytest.raises(ConfigError, match=rf"data\.{option} is '{value}'"):
        read(write(tmp_path / "log.csv", ROWS), **{option: value})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"5 inch pan', '"5 inch pan'),
        ('5" pan', '5" pan'),
        ('"5"" pan"', '5" pan'),
        ('"a" and "b"', '"a" and "b"'),
        ('"', '"'),
    ],
)
def test_a_quote_in_a_tab_separated_file_swallows_nothing(tmp_path, field, text):
    path = written(tmp_path / "log.tsv", f"user_id\titem_id\n{field}\ta\nu2\tb\n")
    assert read(path)[1] == {"user_id": [text, "u2"], "item_id": ["a", "b"]}


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b.csv", ROWS[1:])
    write(tmp_path / "a.csv", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    table, columns = read(tmp_path)
    assert columns["user_id"] == ["u1", "u2"]
    assert table.place(0).endswith("a.csv:2")
    assert table.place(1).endswith("b.csv:2")
    (tmp_path / "b.csv").write_text("user_id,item\nu3,i3\n")
    with pytest.raises(DataError, match=r"b\.csv: no column 'item_id'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("user_id,item,timestamp", r"log\.csv: no column 'item_id'.*data\.columns\.item_id.*'item'.*timestamp"),
        ("user_id;item_id", r"no column 'user_id'.*Columns there: user_id;item_id.*split at ',' \(data\.separator\)"),
        ("user_id,item_id,user_id", r"log\.csv: column 'user_id' is named twice"),
    ],
)
def test_a_column_that_is_not_there_once_is_named(tmp_path, header, said):
    with pytest.raises(DataError, match=said):
        read(written(tmp_path / "log.csv", f"{header}\n"))


def test_lines_are_counted_as_a_person_would(tmp_path):
    table, _ = read(written(tmp_path / "log.csv", 'user_id,title\nu1,"two\nlines"\n\nu2,x\n'), ["user_id"])
    assert [table.place(row).rsplit(":", 1)[1] for row in range(len(table))] == ["2", "5"], "line 3 is of the title"
    table, _ = read(written(tmp_path / "log.jsonl", '{"a": 1}\n\n{"a": 2}\n'), ["a"])
    assert table.place(1).endswith("log.jsonl:3")
    table, _ = read(written(tmp_path / "log.tsv", "\na\tb\n1\t1\n\n2\t2\n"), ["a"])
    assert table.place(1).endswith("log.tsv:5")
    table, _ = read(write(tmp_path / "t.parquet", ROWS))
    assert table.place(1).endswith("t.parquet, row 2")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.jsonl", '{"user_id": "u1"}\n{"user_id": oops}\n', r"log\.jsonl:2: not JSON \(Expecting value, column 13"),
        ("log.jsonl", '{"user_id": "u1"}\n[1, 2]\n', r"log\.jsonl:2: a list, not an object"),
        ("log.jsonl", 'null\n{"user_id": "u1"}\n', r"log\.jsonl:1: null, not an object"),
        ("log.jsonl", '{"user_id": "u1"}\n\n{"user_id": "u2"\n', r"log\.jsonl:3: not JSON"),
        ("log.jsonl", '{"x": ' + "[" * 100_000 + "\n", r"log\.jsonl:1: JSON that nests too deep"),
        ("log.jsonl", '{"x": ' + "1" * 5_000 + "}\n", r"log\.jsonl:1: JSON with an integer of more than 4,300 digits"),
        ("log.csv", "", "empty file"),
        ("log.csv", "user_id,item_id\n", r"log\.csv: no rows"),
        ("log.csv", "user_id,item_id\na,b\nc,d,e,f\n", r"log\.csv:3: 4 fields between ',', but the first line has 2"),
        ("log.csv", "user_id,item_id\na,b,\nc,d,\n", r"log\.csv:2: 3 fields.*quote a field.*data\.separator"),
        ("log.tsv", 'user_id\titem_id\n"a\tb\nc\n', r"log\.tsv:3: 1 fields"),
        ("log.dat", "user_id::item_id\na:b\n", r"log\.dat:2: 1 fields between '::'"),
        ("log.csv", 'user_id,item_id\na,"12 inch\nb,6" pan\n', r"log\.csv:2: .*begins with a quote ends with one"),
        ("log.csv", 'user_id,item_id\na,b\nc,"d\n', r"log\.csv:3: unexpected end of data"),
        ("log.parquet", b"PAR1 and then nothing", r"log\.parquet: cannot be read as parquet"),
        ("log.csv", TORN, r"log\.csv: cannot be read as csv: .*[Tt]runcated"),
        ("log.xlsx", "x", r"unknown form '\.xlsx'.*data\.separator"),
    ],
)
def test_a_broken_file_is_named_with_line_and_remedy(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        read(written(tmp_path / name, content))


def test_a_long_field_is_read_as_any_other(tmp_path):
    for quote in ("", '"'):
        _, columns = read(written(tmp_path / "log.csv", f"user_id,item_id\nu1,{quote}{'x' * 200_000}{quote}\n"))
        assert [len(text) for text in columns["item_id"]] == [200_000]


def test_a_path_is_a_path_and_no_pattern(tmp_path):
    for name in ("a1", "a[1]", "a*"):
        _, columns = read(written(tmp_path / f"{name}.jsonl", f'{{"user_id": "u", "item_id": "{name}"}}'))
        assert columns["item_id"] == [name]


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "b.csv")
    for path in (tmp_path / "b.csv", "/dev/zero"):
        with pytest.raises(DataError, match=r"is a (pipe|device), not a file, given by data\.interactions"):
            read(path)
    with pytest.raises(DataError, match="no file of a known form"):
        read(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    for name, said in {"gone.parquet": "no such file or folder", ".": "no file of a known"}.items():
        with pytest.raises(DataError, match=said):
            read(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "log.csv", "w") as archive:
        archive.writestr("log.csv", "user_id,item_id\n")
    with pytest.raises(DataError, match="a zip archive"):
        read(tmp_path / "log.csv")
    write(tmp_path / "b.parquet", ROWS)
    with pytest.raises(DataError, match=r"several forms \(csv, parquet\)"):
        read(tmp_path)


def test_a_type_behind_a_name_is_read_past_in_delimited_files_only(tmp_path):
    path = written(tmp_path / "log.inter", "user_id:token\tuser_id\titem_id:token\nx\tu\ti\n")
    assert read(path)[1] == {"user_id": ["u"], "item_id": ["i"]}
    assert read(path, ["user_id:token"])[1] == {"user_id:token": ["x"]}
    for name in ("log.jsonl", "log.parquet"):
        with pytest.raises(DataError, match="no column 'user_id'"):
            read(write(tmp_path / name, [("u", "i")], ("user_id:token", "item_id")))


def test_a_hub_data_set_is_read_by_name_and_one_that_cannot_be_reached_is_named(monkeypatch):
    import datasets

    def load(name, **options):
        if name == "owner/away":
            raise ConnectionError("no network")
        return datasets.Dataset.from_dict({"user_id": ["a"], "item_id": ["b"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    table, columns = read("owner/name")
    assert table.place(0) == "owner/name, row 1"
    assert columns["item_id"] == ["b"]
    with pytest.raises(DataError, match="owner/name: no column 'title'"):
        read("owner/name", ["title"])
    with pytest.raises(DataError, match=r"owner/away: neither a file.*no network"):
        read("owner/away")
