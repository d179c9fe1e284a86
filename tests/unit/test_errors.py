from dataclasses import MISSING
from pathlib import Path
from typing import Literal

import pytest

from genrl import errors


@pytest.mark.parametrize(
    "name",
    [
        "ConfigError",
        "UnknownComponentError",
        "DataError",
        "LayoutError",
        "CheckpointError",
        "UnsupportedError",
        "NonFiniteError",
    ],
)
def test_every_error_is_one_the_command_line_explains(name):
    error = getattr(errors, name)("what - where - remedy")
    assert isinstance(error, errors.GenRLError)
    assert str(error) == "what - where - remedy"


def test_only_something_close_is_suggested():
    assert errors.suggest("sappo", ["grpo", "sapo"]) == " Did you mean 'sapo'?"
    assert errors.suggest("sappo", ["grpo"]) == ""
    assert errors.suggest("sappo", []) == ""


@pytest.mark.parametrize(
    ("hint", "allowed"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (list[str], "a list of texts such as [a, b]"),
        (dict[str, int], "a group of options"),
        (Path, "Path"),
    ],
)
def test_a_misfit_says_what_is_allowed(hint, allowed):
    assert errors.misfit("x", hint, MISSING) == f"is not {allowed}."
    assert errors.misfit("x", hint, None) == f"is not {allowed}. The default is null."


def test_a_misfit_suggests_the_closest_choice():
    assert errors.misfit("lst", Literal["best", "last"], MISSING) == "is not one of best, last. Did you mean 'last'?"
