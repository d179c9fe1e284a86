"""One small session for all tests of the stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor

from genrl.training.session import Session
from tests.runs import small_config


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, dict[str, Tensor]]:
    session = Session.build(small_config(tmp_path_factory.mktemp("session")))
    return session, session.policy.state()


@pytest.fixture
def session(built: tuple[Session, dict[str, Tensor]]) -> Iterator[Session]:
    """The session with the weights it began with."""
    session, weights = built
    session.policy.load_state(weights, "the beginning")
    session.policy.zero_grad()
    session.policy.eval()
    yield session
    session.policy._reference = {}
