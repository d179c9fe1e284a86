import io
import os
import sys
import unicodedata
import warnings

import pytest
from rich.console import Console

from genrl.cli import main
from genrl.cli import recommend as command
from genrl.errors import DataError
from genrl.files import read_json, write_json
from genrl.progress import Display
from genrl.terminal import lasting_output, paragraphs, safe, verbatim
from tests.runs import resealed, small

HOSTILE = "lamp\n   1  99.0000  i9  forged\x1b[2K\a\r\u202egpj\u2028[bold]x[/] :smile:"
SHOWN = r"lamp\n   1  99.0000  i9  forged\x1b[2K\x07\r\u202egpj\u2028[bold]x[/] :smile:"


def test_of_all_characters_none_that_is_unseen_is_left_and_the_others_stay():
    every = [chr(number) for number in range(0x110000)]
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert safe("".join(sign for sign in every if unicodedata.category(sign) in unseen)).isascii()
    seen = "".join(sign for sign in every if unicodedata.category(sign) not in unseen)
    assert safe(seen) == seen
    assert len(seen.splitlines()) == 1
    assert [safe(sign) for sign in "\n\x00\x9b\u200b\ud800"] == [r"\n", r"\x00", r"\x9b", r"\u200b", r"\ud800"]


def test_only_the_first_of_several_lines_stands_at_the_margin():
    assert paragraphs("a\nb\n  c\r\ngenrl: d").split("\n") == ["a", "  b", r"  c\r", "  genrl: d"]


def test_words_of_all_scripts_stay():
    assert safe("Füße, 灯, مصباح, 💡") == "Füße, 灯, مصباح, 💡"


def test_rich_prints_it_to_the_letter():
    for text in (HOSTILE, "[dim]x[/]", "[/]", ":smile:", "a\\"):
        stream = io.StringIO()
        Console(file=stream, width=300, force_terminal=True, color_system="truecolor").print(verbatim(text))
        assert stream.getvalue() == f"{safe(text)}\n"


def test_hostile_titles_cannot_forge_a_recommendation(copied, capsys):
    path = copied / "catalog.json"
    catalog = read_json(path)
    assert len(catalog["titles"]) == 60
    catalog["titles"] = [f"{HOSTILE} {number}" for number in range(60)]
    write_json(path, catalog)
    resealed(copied)
    assert main(["recommend", "--run", str(copied), "--history", "i3,i7", "--top", "5"]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert len(lines) == 6
    assert all(SHOWN in line for line in lines[1:])
    assert [int(line.split()[0]) for line in lines[1:]] == [1, 2, 3, 4, 5]


def test_an_error_about_an_item_cannot_pose_as_another(monkeypatch, capsys):
    def fails(options):
        raise DataError(f"no item {HOSTILE}")

    monkeypatch.setattr(command, "read_histories", lambda *_: fails(None))
    assert main(["recommend", "--run", "x", "--history", "a"]) == 2
    said = capsys.readouterr().err
    first, second, end = said.split("\n")
    assert (first, end) == ("genrl: no item lamp", "")
    assert second.startswith("   1  99.0000")
    assert "\x1b" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize("name", ["[dim]x[/]", "[/]"])
def test_a_folder_named_like_markup_is_trained_reused_and_shown(tmp_path, capsys, name):
    words = [word for word in small(tmp_path / name) if not word.startswith("stages")]
    asked = ["fit", "--baseline", "most_popular", "experiment=[red]", "data.toy.users=30", *words]
    asked = [f"output='{tmp_path / name}'" if word.startswith("output=") else word for word in asked]
    asked = ["experiment='[red]'" if word.startswith("experiment=") else word for word in asked]
    folder = tmp_path / name / "[red]" / "most_popular-s0"
    assert main(asked) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "(most_popular), experiment [red], seed 0" in said
    assert f"run folder: {folder}\n" in said
    assert main(asked) == 0
    assert f"{folder} is finished already. Remove it" in capsys.readouterr().out


def test_warnings_and_progress_are_safe(monkeypatch, capsys):
    def warns(*_):
        warnings.warn(HOSTILE, stacklevel=2)
        with Display() as display:
            display.move(display.add(HOSTILE, 3, "steps"), 1, name=f"[/]{HOSTILE}", tell=True)
        raise DataError("done")

    monkeypatch.setattr(command, "read_histories", warns)
    with pytest.warns(UserWarning, match="lamp") as warned:
        assert main(["recommend", "--run", "x", "--history", "a"]) == 2
    for text in (str(warned[0].message), capsys.readouterr().err):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"\u202egpj" in text


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf\\xe9 \\u2192"), ("latin-1", "caf\xe9 \\u2192")])
def test_what_an_encoding_lacks_is_written_as_escapes(tmp_path, monkeypatch, encoding, shown):
    with (tmp_path / "out").open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("caf\u00e9 \u2192")
        print("and on")
    assert (tmp_path / "out").read_text(encoding=encoding) == f"{shown}\nand on\n"


def test_a_reader_that_is_gone_ends_nothing(monkeypatch):
    (reader, writer), done = os.pipe(), []
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("seen", flush=True)
            assert os.read(reader, 100) == b"seen\n"
            os.close(reader)
            for step in range(3):
                print("x" * 100_000, flush=True)
                done.append(step)
        assert sys.stdout is stream
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")  # what would have ended the program
        monkeypatch.setattr(sys, "stdout", None)  # closed before the program began
        with lasting_output():
            print("nowhere", flush=True)
            done.append("without stdout")
        assert sys.stdout is None
    assert done == [0, 1, 2, "without stdout"]
