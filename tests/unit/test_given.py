import os
import socket

import pytest

from genrl.errors import DataError
from genrl.given import json_of, kind_of, lines_of, read_text, regular, wrong_name


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfone\n\n  two\n")
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(os.path.relpath(tmp_path / "plug"))  # the name of a socket has a bound of its own
    return tmp_path


def test_what_lies_at_a_path_is_known_before_it_is_opened(places):
    kinds = {"file": "file", "link": "file", "pipe": "a pipe", "plug": "a socket", "": "a folder", "none": ""}
    assert {name: kind_of(places / name, "--x") for name in kinds} == kinds
    assert kind_of(places / "file" / "below", "--x") == ""
    assert (kind_of("~/file", "--x"), regular("~/file", "--x")) == ("file", places / "file")


@pytest.mark.parametrize("read", [regular, read_text, lambda *of: list(lines_of(*of)), json_of])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", r"none: no such file, given by --x\. Check the path"),
        ("", "is a folder, not a file, given by --x"),
        ("pipe", "is a pipe, not a file"),
        ("/dev/zero", "/dev/zero: is a device, not a file"),
        ("n" * 300, r"cannot be read \(File name too long\), given by --x"),
        ("n" * 9999, r"n \.\.\. \([\d,]+ signs\): cannot be read"),
        ("a\0b", r"cannot be read \(embedded null byte\)"),
        ("~nobody7/a", r"~nobody7/a: cannot be read \(Could not determine home directory"),
    ],
)
def test_only_regular_files_are_opened(places, read, name, said):
    with pytest.raises(DataError, match=said):
        read(name if name.startswith(("/", "~")) else f"{places}/{name}", "--x")


def test_text_is_utf8_and_has_places(places):
    assert read_text(places / "file", "--x") == "one\n\n  two\n"
    assert list(lines_of(places / "file", "--x")) == [
        (f"{places / 'file'}:1", "one\n"),
        (f"{places / 'file'}:3", "  two\n"),
    ]
    for read in (read_text, json_of, lambda *of: list(lines_of(*of))):
        with pytest.raises(DataError, match=r"latin: is not UTF-8 text .*, given by --x\. Save it as UTF-8"):
            read(places / "latin", "--x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"x: not JSON \(Expecting property name enclosed in double quotes, column 2\), given by --x"),
        ("[1,\n oops]", r"not JSON \(Expecting value, line 2, column 2\)"),
        ("[" * 100_000, "JSON that nests too deep"),
        ("9" * 5_000, "an integer of more than 4,300 digits"),
        ('{"a": 1}', "our own words"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, text, said):
    def refuse(pairs):
        raise DataError("our own words")

    (tmp_path / "x").write_text(text)
    with pytest.raises(DataError, match=said):
        json_of(tmp_path / "x", "--x", refuse)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x" * 200, ""),
        ("café 2 [dim]", ""),
        ("é" * 101, "has 202 bytes, and names may have 200"),
        (" ", "names no folder"),
        ("..", "names no folder"),
        ("a\x1bb", r"holds '\x1b'"),
    ],
)
def test_names_are_those_that_disks_and_terminals_take(name, wrong):
    assert wrong_name(name).startswith(wrong)
    assert bool(wrong_name(name)) == bool(wrong)
