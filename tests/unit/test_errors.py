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
