import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def run_module(monkeypatch):
    """Stands for genrl.runs.fit, .recommend, .rescore, .slates and .export, and records what is asked of them."""
    module = ModuleType("genrl.runs")
    module.calls = []

    def record(name, result):
        def called(*args, **kwargs):
            module.calls.append((name, args, kwargs))
            return result

        return called

    module.fit = record("fit", Path("runs/toy/sapo-s0"))
    module.evaluate_run = record("evaluate_run", {})
    module.found = SimpleNamespace(items=[("17", "a title", -0.5)], thinking=["red fruit", "sweet"])
    module.recommend = record("recommend", [module.found])
    module.build_sids = record(
        "build_sids", SimpleNamespace(report=SimpleNamespace(lines=lambda: ["items: 300", "300 distinct SIDs"]))
    )
    module.write_slates = record("write_slates", SimpleNamespace(lines=lambda: ["2 slates"]))
    module.export = record("export", SimpleNamespace(lines=lambda: ["written"]))
    for name in ("fit", "recommend", "rescore", "slates", "export"):
        monkeypatch.setitem(sys.modules, f"genrl.runs.{name}", module)
    return module
