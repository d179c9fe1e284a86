import math
import re
from dataclasses import dataclass, field

import pytest

from genrl.errors import ConfigError
from genrl.options import option
from genrl.registry import Registry


@dataclass
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Bounded:
    rate: float = option(0.5, ge=0, lt=1)
    free: float = 2.0
    sizes: list[int] = option([1], ge=1)
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class OtherDefault(Bounded):
    rate: float = 0.1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rate", 1.0, "1.0 must be at least 0 and below 1."),
        ("rate", math.nan, "nan must be at least 0 and below 1."),
        ("free", math.nan, "nan must be a finite number."),
        ("free", -math.inf, "-inf must be a finite number."),
        ("sizes", [2, 0], "[2, 0] must be at least 1."),
        ("sizes", [], "[] must be at least 1."),
    ],
)
@pytest.mark.parametrize("config", [Bounded, OtherDefault])
def test_bounds_hold_for_values_and_instances_and_are_inherited(config, key, value, said):
    registry = Registry("thing", "genrl.tests_of_options")
    registry.register("bounded", config=config)(lambda config: config)
    assert registry.problems("bounded", {key: value}) == [(key, f"thing 'bounded', option {key!r}: {said}")]
    with pytest.raises(ConfigError, match=re.escape(said)):
        registry.build("bounded", config(**{key: value}))
    assert registry.build("bounded", {"rate": "0.25"}) == config(rate=0.25)
