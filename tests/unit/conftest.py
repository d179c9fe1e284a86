"""Small sessions and a finished run for all tests of the stages."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.runs.fit import fit
from genrl.runs.session import Session
from tests.runs import QUICK, anew, begun, curves_drawn, small_config


@pytest.fixture(autouse=True, scope="session")
def without_curves() -> Iterator[None]:
    with curves_drawn(False):
        yield


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that nothing can be written into; modes do not stop root, so the calls are refused."""

    def seal(folder: Path) -> None:
        def guarded(name: str) -> None:
            call = getattr(os, name)

            def guard(path: Any, *arguments: Any, **options: Any) -> Any:
                writes = name != "open" or (arguments[0] if arguments else options["flags"]) & (os.O_WRONLY | os.O_RDWR)
                if writes and Path(os.fsdecode(path)).absolute().is_relative_to(folder):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return call(path, *arguments, **options)

            monkeypatch.setattr(os, name, guard)

        for name in ("open", "mkdir", "replace"):
            guarded(name)

    return seal


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, dict[str, Tensor]]:
    return begun(tmp_path_factory.mktemp("session"))


@pytest.fixture
def session(built: tuple[Session, dict[str, Tensor]]) -> Session:
    """The session with the weights it began with."""
    return anew(*built)


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session whose policy thinks, with weights far from uniform; tests leave it as it is."""
    config = small_config(
        tmp_path_factory.mktemp("thinking"), "layout=blocked", "layout.budget=3", "data.max_history=8"
    )
    session = Session.build(config)
    with torch.no_grad():
        for value in session.policy.trainable().values():
            if value.dim() > 1:
                value.mul_(4.0)
    session.policy.eval()
    return session


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    return fit(small_config(tmp_path_factory.mktemp("runs"), *QUICK), command="genrl fit")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run and its experiment that a test may spoil."""
    shutil.copytree(finished.parent, tmp_path / "toy")
    return tmp_path / "toy" / finished.name
