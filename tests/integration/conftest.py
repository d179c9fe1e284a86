"""Runs of these tests leave out what most of them do not look at."""

from collections.abc import Iterator

import pytest

from tests.runs import curves_drawn


@pytest.fixture(autouse=True, scope="package")
def without_curves() -> Iterator[None]:
    with curves_drawn(False):
        yield
