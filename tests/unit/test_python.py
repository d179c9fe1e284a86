"""The public Python interface, as docs/python.md shows it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import genrl
from genrl.errors import DataError
from genrl.runs.recommend import recommend

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


LOADED = """
import sys
import genrl
first = {"torch", "transformers", "lightning", "omegaconf"} & set(sys.modules)
import genrl.python
from genrl.cli import main
models = {"transformers.modeling_utils", "torch._dynamo", "scipy"}
training = {"lightning", "tensorboard", "torchmetrics", "datasets", "sklearn", "peft", "matplotlib", "pandas"}
assert main(["list"]) == 0
second = (models | training) & set(sys.modules)
assert main(["recommend", "--run", sys.argv[1], "--history", "i3"]) == 0
third = training & set(sys.modules)
sys.exit(f"{first} {second} {third}" if first | second | third else 0)
"""
"""Fails if anything is loaded that `import genrl`, listing components, or the answers of a policy do without."""


def test_nothing_is_loaded_that_is_not_needed(finished):
    done = subprocess.run([sys.executable, "-c", LOADED, str(finished)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(genrl, name) is not None and name in dir(genrl) for name in genrl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        genrl.lead  # noqa: B018


def test_a_loaded_run_ranks_as_recommend_does(finished):
    loaded = genrl.load(finished)
    found = loaded.rank([["i3", "i7"], ["i5"]], 4, exclude_history=True)
    wanted = recommend(finished, [["i3", "i7"], ["i5"]], 4, exclude_seen=True)
    assert found == [[(item, score) for item, _, score in each.items] for each in wanted]
    with pytest.raises(DataError, match="'i999'"):
        loaded.rank([["i999"]])


def test_the_page_runs_as_written(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    small = '"data.toy.users=60", "data.toy.items=60", "trainer.accelerator=cpu", "output=runs"'
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"output=runs"', small), {})
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert all(re.fullmatch(r"i\d+ -\d+\.\d+", line) for line in lines)
