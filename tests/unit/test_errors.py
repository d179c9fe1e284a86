from pathlib import Path
from typing import Literal, Optional

import pytest

from genrl import errors

BAD = TypeError("bad, it says\nat some length")


def test_every_error_is_one_the_command_line_explains():
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    assert len(own) == 15
    assert [kind for kind in own if not issubclass(kind, errors.GenRLError)] == [errors.Stopped]
    assert not issubclass(errors.Stopped, Exception)  # so that nothing that mends errors takes it for one
    assert str(errors.DataError("what - where - remedy")) == "what - where - remedy"


def test_only_something_close_is_suggested():
    assert errors.suggest("sappo", ["grpo", "sapo"]) == " Did you mean 'sapo'?"
    assert errors.suggest("sappo", ["grpo"]) == ""
    assert errors.suggest("sappo", []) == ""


@pytest.mark.parametrize(
    ("hint", "allowed"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (Optional[int], "an integer or null"),  # noqa: UP045 (as users of older code write it)
        (list[str], "a list of texts such as [a, b]"),
        (dict[str, int], "a group of options"),
    ],
)
def test_a_misfit_says_what_is_allowed(hint, allowed):
    assert errors.wrong_value("x", hint, BAD) == f"is not {allowed}."
    assert errors.wrong_value("x", hint, BAD, None) == f"is not {allowed}. The default is null."


def test_a_misfit_suggests_the_closest_choice():
    assert errors.wrong_value("lst", Literal["best", "last"], BAD) == "is not one of best, last. Did you mean 'last'?"


@pytest.mark.parametrize("hint", [Path, list[list[int]], tuple[int, int], Path | None, dict[str, int]])
def test_a_misfit_without_words_of_ours_is_told_in_those_of_the_library(hint):
    value = {"a": "x"} if hint == dict[str, int] else "x"  # what is wrong is inside the group
    assert errors.wrong_value(value, hint, BAD, "y") == "does not fit: bad, it says."
