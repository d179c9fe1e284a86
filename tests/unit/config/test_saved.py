import json
from importlib import import_module

import pytest

from genrl import registry
from genrl.cli import main
from genrl.config import RunConfig
from genrl.config.saved import copy_plugins, keep_plugins, read_saved, refuse_remote_code, trusting
from genrl.errors import CheckpointError, ConfigError, UntrustedError
from genrl.files import file_hash, read_json
from genrl.python import load
from genrl.registry import load_plugin
from tests.runs import resealed, small

PLUGIN = """
from pathlib import Path

RAN = Path({ran!r})
RAN.write_text(RAN.read_text() + __file__ + chr(10) if RAN.exists() else __file__ + chr(10))
"""


class Place:
    """A run with a plug-in that notes each time it is run, named by a relative path."""

    def __init__(self, home):
        self.home, self.ran = home, home / "ran.txt"
        self.plugin = home / "work" / "mine.py"
        self.plugin.parent.mkdir()
        self.plugin.write_text(PLUGIN.format(ran=str(self.ran)))

    def runs(self):
        return self.ran.read_text().split() if self.ran.exists() else []


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A finished run, seen by another process in another working folder."""
    place = Place(tmp_path)
    monkeypatch.chdir(place.plugin.parent)
    monkeypatch.setattr(registry, "_known", {})
    words = [*(word for word in small(tmp_path / "runs") if not word.startswith("stages")), "data.toy.users=30"]
    assert main(["fit", "--plugin", "mine.py", "--baseline", "most_popular", "experiment=x", *words]) == 0
    place.folder = tmp_path / "runs" / "x" / "most_popular-s0"
    assert place.runs() == [str(place.plugin)]
    place.ran.unlink()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    monkeypatch.setattr(registry, "_known", {})
    return place


def uses(folder):
    return (
        ["evaluate", "--run", str(folder)],
        ["recommend", "--run", str(folder), "--history", "i3"],
        ["compare", "--report-only", "--output", str(folder.parents[1]), "--experiment", "x"],
    )


def test_no_command_runs_the_code_of_a_run_folder_unasked(elsewhere, capsys):
    digest = file_hash(elsewhere.plugin)
    copy = elsewhere.folder / "plugins" / digest[:16] / "mine.py"
    assert copy.read_bytes() == elsewhere.plugin.read_bytes()
    assert json.loads((elsewhere.folder / "manifest.json").read_text())[f"plugins/{digest[:16]}/mine.py"] == digest
    (elsewhere.home / "other" / "mine.py").write_text("raise SystemError")  # what the relative path names there
    for words in uses(elsewhere.folder):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"names code that would be imported: mine.py (its copy is {copy})." in said
        assert "Say --trust " in said
        assert "--plugin mine.py" in said
    with pytest.raises(UntrustedError, match=r"trust=True"):
        load(elsewhere.folder)
    assert main(["verify", "--run", str(elsewhere.folder)]) == 0
    assert elsewhere.runs() == []


def test_a_trusted_folder_runs_its_own_copy_from_anywhere(elsewhere, capsys, monkeypatch):
    elsewhere.plugin.unlink()
    copy = next(elsewhere.folder.glob("plugins/*/mine.py"))
    for words in uses(elsewhere.folder):
        monkeypatch.setattr(registry, "_known", {})
        assert main([*words, "--trust"]) == 0, capsys.readouterr().err
        assert elsewhere.runs()[-1] == str(copy)
    assert len(elsewhere.runs()) == 3
    monkeypatch.setattr(registry, "_known", {})
    assert len(load(elsewhere.folder, trust=True).rank([["i3"]], 3)[0]) == 3
    assert main(uses(elsewhere.folder)[0]) == 0  # what this process has been let run once
    assert not list(elsewhere.folder.rglob("__pycache__"))


def test_the_users_own_file_of_the_same_content_is_enough(elsewhere, capsys, monkeypatch):
    for words in uses(elsewhere.folder):
        monkeypatch.setattr(registry, "_known", {})
        assert main([*words, "--plugin", str(elsewhere.plugin)]) == 0, capsys.readouterr().err
    assert elsewhere.runs() == [str(elsewhere.plugin)] * 3
    elsewhere.plugin.write_text(elsewhere.plugin.read_text() + "# changed\n")
    monkeypatch.setattr(registry, "_known", {})
    assert main([*uses(elsewhere.folder)[0], "--plugin", str(elsewhere.plugin)]) == 2
    assert "another content than the file of that name you gave" in capsys.readouterr().err


def test_of_two_contents_under_one_name_each_run_gets_its_own(elsewhere):
    elsewhere.plugin.write_text(elsewhere.plugin.read_text() + "# changed\n")
    load_plugin(str(elsewhere.plugin))
    with trusting():
        read_saved(elsewhere.folder)
        copy = next(elsewhere.folder.glob("plugins/*/mine.py"))
        assert elsewhere.runs() == [str(elsewhere.plugin), str(copy)]
        read_saved(elsewhere.folder)  # is the latest now
    assert len(elsewhere.runs()) == 2


def test_a_copy_that_was_changed_lost_or_led_astray_is_not_run(elsewhere):
    copy = next(elsewhere.folder.glob("plugins/*/mine.py"))
    whole, inputs = copy.read_text(), elsewhere.folder / "inputs.json"
    copy.write_text(whole + "# more\n")
    with pytest.raises(CheckpointError, match=r"is damaged: plugins/.*/mine\.py has another content"):
        load(elsewhere.folder, trust=True)
    resealed(elsewhere.folder)
    with pytest.raises(CheckpointError, match=r"mine\.py is not the plug-in that"):
        load(elsewhere.folder, trust=True)
    noted = json.loads(inputs.read_text())
    for digest in ("../../../../work", "0" * 64):
        inputs.write_text(json.dumps({**noted, "plugins mine.py": digest}))
        resealed(elsewhere.folder)
        with pytest.raises(CheckpointError, match=r"holds no copy of its plug-in mine\.py.*--plugin mine\.py"):
            load(elsewhere.folder, trust=True)
    assert elsewhere.runs() == []


def test_a_module_needs_trust_too_and_finding_it_runs_nothing(tmp_path, monkeypatch):
    package = tmp_path / "found_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('imported')")
    (package / "parts.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_module("genrl.runs.inputs").plugins(RunConfig(plugins=["found_package.parts"])) == {
        "plugins found_package.parts": package / "parts.py"
    }
    (tmp_path / "config.yaml").write_text("plugins: [found_package.parts]")
    with pytest.raises(UntrustedError, match=r"found_package\.parts \(an installed module\)"):
        read_saved(tmp_path)
    (package / "__init__.py").write_text("")
    with trusting():
        assert read_saved(tmp_path).plugins == ["found_package.parts"]


def test_a_plug_in_named_on_the_line_is_the_users_own(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3")
    own = tmp_path / "line_own.py"
    own.write_text("")
    assert read_saved(tmp_path, [f"plugins=[{own}]"]).seed == 3
    assert registry.imported(str(own), file_hash(own))


def test_code_of_a_base_model_runs_only_where_it_is_asked_for(tmp_path):
    config = RunConfig()
    refuse_remote_code(tmp_path, config, [])
    config.model.trust_remote_code = True
    with pytest.raises(UntrustedError, match=r"code that comes with its base model tiny .*--trust"):
        refuse_remote_code(tmp_path, config, ["model.name=x"])
    refuse_remote_code(tmp_path, config, ["model.trust_remote_code=true"])
    with trusting():
        refuse_remote_code(tmp_path, config, [])
    with pytest.raises(UntrustedError):
        refuse_remote_code(tmp_path, config, [])


def test_a_plug_in_that_changed_since_it_was_imported_is_not_kept(tmp_path):
    plugin = tmp_path / "changing.py"
    plugin.write_text("A = 1\n")
    load_plugin(str(plugin))
    plugin.write_text("A = 2\n")
    config = RunConfig(plugins=[str(plugin)])
    with pytest.raises(ConfigError, match="was changed since it was imported"):
        keep_plugins(tmp_path, config, {f"plugins {plugin}": file_hash(plugin)})
    load_plugin(str(plugin))
    keep_plugins(tmp_path, config, {f"plugins {plugin}": file_hash(plugin)})
    assert next(tmp_path.glob("plugins/*/changing.py")).read_text() == "A = 2\n"


def test_what_is_left_of_a_guide_carries_its_plug_ins(elsewhere):
    guide = elsewhere.home / "guide"
    guide.mkdir()
    copy_plugins(elsewhere.folder, guide)
    (guide / "config.yaml").write_text((elsewhere.folder / "config.yaml").read_text())
    assert read_json(guide / "inputs.json") == {"plugins mine.py": file_hash(elsewhere.plugin)}
    with pytest.raises(UntrustedError, match=r"its copy is .*guide/plugins/.*/mine\.py"):
        read_saved(guide)
    with trusting():
        read_saved(guide)
    assert elsewhere.runs() == [str(next(guide.glob("plugins/*/mine.py")))]


def test_a_run_that_asks_for_the_code_of_its_model_is_refused(copied):
    saved = copied / "config.yaml"
    saved.write_text(saved.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    resealed(copied)
    with pytest.raises(UntrustedError, match=r"asks to run the code that comes with its base model"):
        load(copied)
    assert load(copied, trust=True).rank([["i3"]], 2) == load(copied, ["model.trust_remote_code=true"]).rank(
        [["i3"]], 2
    )


def test_a_baseline_that_asks_for_the_code_of_its_model_is_refused(elsewhere):
    load_plugin(str(elsewhere.plugin))
    saved = elsewhere.folder / "config.yaml"
    saved.write_text(saved.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    resealed(elsewhere.folder)
    with pytest.raises(UntrustedError, match=r"asks to run the code that comes with its base model"):
        load(elsewhere.folder)
    assert load(elsewhere.folder, ["model.trust_remote_code=true"]).rank([["i3"]], 2)
