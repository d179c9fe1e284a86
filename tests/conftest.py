"""Options and fixtures of the whole suite."""

from pathlib import Path

import pytest

from tests.helpers import assert_same

__all__ = ["assert_same"]

GOLDEN = Path(__file__).parents[1] / "genrl" / "selftest" / "golden_objectives.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(GOLDEN), help="file of golden cases that tests/golden reads")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case of the golden file."""
    if "golden_case" in metafunc.fixturenames:
        import json

        cases = json.loads(Path(metafunc.config.getoption("--golden")).read_text())["cases"]
        metafunc.parametrize("golden_case", sorted(cases))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs more GPUs than there are."""
    marked = [(item, 2 if item.get_closest_marker("multigpu") else 1) for item in items]
    marked = [(item, least) for item, least in marked if least == 2 or item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item, least in marked:
            if torch.cuda.device_count() < least:
                item.add_marker(pytest.mark.skip(reason=f"needs {least} CUDA device(s)"))
