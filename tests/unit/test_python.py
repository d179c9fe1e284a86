"""The public Python interface, as docs/python.md shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import genrl
from genrl.errors import DataError
from genrl.runs.recommend import recommend

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("genrl", {"torch", "transformers", "lightning", "omegaconf"}),
        ("genrl.python", {"lightning", "tensorboard", "torchmetrics", "datasets", "sklearn", "peft", "matplotlib"}),
    ],
)
def test_importing_loads_nothing_that_is_not_needed(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({unwanted} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("name", genrl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(genrl, name) is not None
    assert name in dir(genrl)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        genrl.lead  # noqa: B018


def test_a_loaded_run_ranks_as_recommend_does(finished: Path) -> None:
    loaded = genrl.load(finished)
    found = loaded.rank([["i3", "i7"], ["i5"]], 4, exclude_history=True)
    wanted = recommend(finished, [["i3", "i7"], ["i5"]], 4, exclude_seen=True)
    assert found == [[(item, score) for item, _, score in each.items] for each in wanted]
    with pytest.raises(DataError, match="'i999'"):
        loaded.rank([["i999"]])


def test_the_page_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    small = '"data.toy.users=60", "data.toy.items=60", "trainer.accelerator=cpu", "output=runs"'
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"output=runs"', small), {})
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert all(re.fullmatch(r"i\d+ -\d+\.\d+", line) for line in lines)
