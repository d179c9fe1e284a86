import subprocess
import sys
from dataclasses import dataclass

from genrl import cli
from genrl.cli.configuration import REGISTRIES
from genrl.registry import Registry


def test_list_shows_names_titles_papers_origins_and_broken_plugins(monkeypatch, capsys):
    registry = Registry("objective", "genrl.test_nothing")

    @registry.register("mine", aliases=("my-own",), title="My Own", paper="2605.17648")
    @dataclass
    class Mine:
        pass

    monkeypatch.setattr(registry, "broken", lambda: {"theirs": "ModuleNotFoundError: no module"})
    monkeypatch.setattr(registry, "names", lambda: ("mine", "theirs"))
    monkeypatch.setitem(REGISTRIES, "objective", lambda: registry)
    assert cli.main(["list", "objective"]) == 0
    shown = capsys.readouterr().out
    assert "mine, my-own" in shown
    assert "My Own  [arXiv:2605.17648]" in shown
    assert "test_listing" in shown
    assert "theirs (broken: ModuleNotFoundError: no module)" in shown


def test_components_are_listed_by_their_plural_too_or_all_of_them(capsys):
    for words in (["list", "objective"], ["list", "objectives"], ["list"]):
        assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("objectives\n  bapo")
        assert "sapo, step-aligned" in shown
        assert ("layouts\n" in shown) == (words == ["list"])
    assert all(word in shown for word in ("  sid ", "rewards\n", "exact_match", "SID builders\n", "kmeans"))


def test_a_reader_that_has_seen_enough_ends_a_listing_in_silence():
    command = [sys.executable, "-m", "genrl", "list", "sid"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0
