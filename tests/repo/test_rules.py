"""The repository keeps its own rules, and the script that checks them finds breaches."""

import subprocess
import sys

import check_repo
import config_reference
import pytest
from check_repo import ROOT


@pytest.mark.parametrize("check", check_repo.CHECKS, ids=lambda check: check.__name__)
def test_the_repository_keeps_its_rules(check):
    assert list(check(ROOT)) == []


def build(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("genrl/batches.py", "from genrl.config import RunConfig\n", "batches (floor 0) imports genrl.config"),
        ("genrl/objectives/a.py", "def f():\n    import genrl.runs.fit\n", "a.py:2: objectives (floor 2) imports"),
        ("genrl/rewards/a.py", "from genrl import layouts\n", "rewards (floor 3) imports genrl.layouts"),
        ("genrl/rewards/a.py", "from ..layouts import base\n", "rewards (floor 3) imports genrl.layouts"),
        ("genrl/catalog/a.py", "from genrl.sid import table\n", "catalog (floor 2) imports genrl.sid"),
        ("genrl/cli/fit.py", "import torch\n", "cli must work without torch"),
        ("genrl/novelty/a.py", "", "'novelty' has no floor"),
    ],
)
def test_an_import_from_above_is_found(tmp_path, file, text, reason):
    (problem,) = check_repo.floors(build(tmp_path, {file: text}))
    assert reason in problem


def test_imports_from_below_and_declared_siblings_are_fine(tmp_path):
    files = {
        "genrl/sid/a.py": "from genrl.catalog import items\nfrom genrl.errors import DataError\nimport torch\n",
        "genrl/training/a.py": "from genrl import __version__\nfrom genrl.recommenders import base\n",
        "genrl/layouts/a.py": "from . import base\nfrom genrl.sid.trie import Trie\n",
    }
    assert list(check_repo.floors(build(tmp_path, files))) == []


UNTESTED = {f"genrl/a/{name}.py": "" for name in ("b", "c", "d", "__init__")} | {"tests/__init__.py": ""}
UNTESTED |= {"tests/unit/__init__.py": "", "tests/unit/a/test_c.py": "from genrl.a.d import x\n"}
LOOSE = {"tests/test_a.py": "close(a, b, rtol=1)\n", "tests/helpers.py": "close(a, b, atol=1)\n"}
LOST = {
    "README.md": "[docs](docs/index.md) [site](https://example.org) [gone](docs/gone.md)",
    "docs/index.md": "[a](a.md)",
    "docs/a.md": "about `known`",
    "docs/lost.md": "",
    "genrl/objectives/x.py": 'OBJECTIVES.register("known")(a)\n\nOBJECTIVES.register("silent", config=C)(b)\n',
}
HOME = "/".join(["", "home", "me", "x"])
LOCAL = {"docs/a.md": f"see {HOME}\nsee docs{HOME} and https://x.org{HOME}", "pyproject.toml": f'a = "{HOME}"'}


@pytest.mark.parametrize(
    ("check", "files", "begins"),
    [
        (check_repo.mirrored_tests, UNTESTED, ["tests/unit/a: has no __init__.py", "genrl/a/b.py: has no tests in"]),
        (check_repo.one_tolerance, LOOSE, ["tests/test_a.py:1: own rtol"]),
        (
            check_repo.documentation,
            LOST,
            [
                "README.md: the link to docs/gone.md leads nowhere",
                "docs/index.md: has no link to docs/lost.md",
                "genrl/objectives/x.py:3: 'silent' is registered",
            ],
        ),
        (check_repo.portable, LOCAL, ["docs/a.md:1: ", "pyproject.toml:1: "]),
    ],
)
def test_every_breach_is_found_and_nothing_else(tmp_path, check, files, begins):
    problems = list(check(build(tmp_path, files)))
    assert len(problems) == len(begins)
    assert all(problem.startswith(words) for problem, words in zip(problems, begins, strict=True))


def test_an_option_without_a_docstring_has_no_reference(tmp_path):
    build(tmp_path, {config_reference.SOURCE: 'class RunConfig:\n    """A."""\n    seed: int = 0\n'})
    with pytest.raises(ValueError, match="seed has no docstring"):
        config_reference.render(tmp_path)


def test_every_option_is_in_the_reference():
    from genrl.config import dotted_keys

    page = config_reference.render(ROOT)
    assert [key for key in dotted_keys() if f"| `{key}` |" not in page] == []


def test_the_script_needs_no_torch():
    code = "import sys, check_repo, config_reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools", check=False).returncode == 0
