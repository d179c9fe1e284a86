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


def test_list_shows_every_registry(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "objectives",
        "sapo, step-aligned",
        "layouts",
        "sid",
        "rewards",
        "exact_match",
        "SID builders",
        "kmeans",
    ):
        assert word in shown


def test_components_are_listed_by_their_plural_too(capsys):
    assert cli.main(["list", "objective"]) == 0
    one = capsys.readouterr().out
    assert cli.main(["list", "objectives"]) == 0
    assert capsys.readouterr().out == one
    assert one.startswith("objectives\n  bapo")


def test_a_reader_that_has_seen_enough_ends_a_listing_in_silence():
    command = [sys.executable, "-m", "genrl", "list", "sid"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0
