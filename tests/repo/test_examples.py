"""The files under configs/ and the commands in README and docs are what they say."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from genrl.cli import parse
from genrl.cli.configuration import REGISTRIES, compose
from genrl.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
START = "pip install -e . && python -m genrl fit --objective sapo"
TEST = 'pip install -e ".[dev]" && python -m pytest -m ""'


def commands(page):
    """Every shell command in the fenced bash blocks of a page, split at `&&`."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.partition("#")[0].split("&&"):
                if command.strip():
                    yield command.strip()


GENRL = [(page.name, command) for page in PAGES for command in commands(page) if command.startswith("python -m genrl")]


def test_there_are_examples():
    assert len(CONFIGS) == 15
    assert len(GENRL) >= 10


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_file_fits_schema_and_components(path):
    config = load_config([path], registries=REGISTRIES)
    assert config != load_config(registries=REGISTRIES) or path.name in ("toy.yaml", "tiny.yaml")


def test_the_toy_file_says_what_fit_does_without_a_file():
    assert load_config([ROOT / "configs" / "toy.yaml"]) == load_config()


def test_the_beauty_experiment_is_complete_and_the_large_model_goes_over_it():
    folder = ROOT / "configs"
    config = load_config([folder / "experiment" / "beauty.yaml", folder / "model" / "qwen3_1p7b_qlora.yaml"])
    assert (config.experiment, config.data.source, config.data.columns.category) == ("beauty", "files", "category_l2")
    assert (config.sid["levels"], config.sid["codes"]) == (3, 256)
    assert (config.rollout.method, config.rollout.prompts) == ("beam", 192)
    assert (config.model.quantize, config.trainer.precision) == ("nf4", "bf16-true")


@pytest.mark.parametrize(("page", "command"), GENRL, ids=[f"{page}: {command}" for page, command in GENRL])
def test_every_documented_command_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[3:]
    options = parse(words)
    assert options.command == words[0]
    written = [file for file in getattr(options, "config", []) if file.startswith("configs/")]
    if options.command in ("fit", "sid") and len(written) == len(options.config) and not options.plugin:
        compose(options)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "changelog.md"], ids=lambda page: page.name)
def test_modules_files_and_names_in_the_documentation_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(genrl(?:\.\w+)+)", text)):
        assert resolves(name) or name == "genrl.sid_builders", f"{name} in {page.name}"  # a group of entry points
    for path in set(re.findall(r"`((?:genrl|tools|configs|tests)/[\w./-]+)`", text)):
        assert (ROOT / path).exists() or "NAME" in path or "/a/" in path, f"{path} in {page.name}"


def resolves(name):
    """Whether a dotted name is a module, or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_readme_starts_and_tests_with_one_line_each_and_the_ci_runs_the_test():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{START}\n" in text
    assert f"\n{TEST}\n" in text
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert TEST in script
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert "://" not in script
