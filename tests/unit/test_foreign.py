import numpy as np
import pytest
import torch

from genrl.errors import ComponentError, ConfigError
from genrl.foreign import calling, described, is_built_in
from genrl.ops import masked_mean


def divides():
    return 1 // 0


def leaves():
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (divides, r"'x' raised ZeroDivisionError: .*test_foreign.py, line 11: return 1 // 0"),
        (leaves, r"'x' called sys.exit\(0\) .*line 15.*must not end the process"),
    ],
)
def test_what_code_of_a_user_raises_is_named_with_its_line(code, message):
    with pytest.raises(ComponentError, match=message) as error, calling("reward 'x'", code):
        code()
    assert isinstance(error.value.__cause__, (ZeroDivisionError, SystemExit))


def test_genrls_own_errors_and_lack_of_memory_are_left_as_they_are():
    with pytest.raises(ZeroDivisionError), calling("objective 'grpo'", masked_mean):
        divides()
    for error in (ConfigError("said already"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)), calling("reward 'x'", divides):
            raise error
    assert is_built_in(masked_mean)
    assert not is_built_in(divides)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 3), "a Tensor of torch.float32 with shape [2, 3] on cpu"),
        (np.zeros(4), "a ndarray of float64 with shape [4]"),
        ([1, 2], "a list of length 2"),
        (None, "None"),
        (3.0, "a float"),
    ],
)
def test_values_in_words(value, words):
    assert described(value).startswith(words)
