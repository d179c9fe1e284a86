"""Baselines that write Semantic IDs rank as policies do: exactly, with the history filtered inside the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking, Requests
from genrl.config.schema import EvaluateConfig, ModelConfig
from genrl.errors import UnsupportedError
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders import BASELINES, Problem, TrainedBaseline, TrainingConfig
from genrl.recommenders.searching import SearchingBaseline, bare
from genrl.sid.table import make_table
from tests.helpers import assert_same
from tests.models import SIZES, make_codes
from tests.unit.recommenders.problems import PROBLEM, dataset_of, shaken

ITEMS = 30
MODEL = ModelConfig(hidden=16, layers=1, heads=2, feed_forward=32, vocabulary=300, dropout=0.0)
SMALL: dict[str, dict[str, Any]] = {
    "tiger": {"layers": 1, "hidden": 16, "heads": 2, "head_size": 8, "feed_forward": 24},
    "lc_rec": {},
}
Maker = Callable[[int], SearchingBaseline]


@pytest.fixture(scope="module", params=["tiger", "tiger vocab", "lc_rec"])
def make(request: pytest.FixtureRequest) -> Maker:
    """Makes a model of a beam, always of the same weights, far from uniform distributions."""
    name, _, normalize = request.param.partition(" ")
    dataset = dataset_of([list(range(ITEMS)), [5, 6]])
    problem = Problem(dataset, make_table(make_codes(ITEMS), SIZES, dataset.catalog, collisions="keep"), MODEL)
    options = {**SMALL[name], **({"normalize": normalize} if normalize else {}), "max_length": 5}
    torch.manual_seed(0)
    state = shaken(BASELINES.build(name, options, problem=problem)).state()  # type: ignore[arg-type]

    def made(beam: int) -> SearchingBaseline:
        model = BASELINES.build(name, {**options, "beam": beam}, problem=problem)
        assert isinstance(model, SearchingBaseline)
        model.problem = problem
        model.load_state(state, "weights")
        return model

    return made


@pytest.fixture
def histories(make: Maker) -> Tensor:
    """Short ones, none at all, and three times most of what the model likes best."""
    liked = make(ITEMS).best(torch.tensor([[3, 4, 4]]), ITEMS).items[0, :20]
    short = [[3, 17, 4, 29], [8], [], [11, 2, 25], [3]] * 4  # several groups by length
    rows = [*short, *(liked.roll(turn).tolist() for turn in range(3))]
    return torch.tensor([[-1] * (20 - len(row)) + row for row in rows])


def without(full: Ranking, histories: Tensor, count: int) -> list[list[int]]:
    rows = zip(full.items.tolist(), histories.tolist(), strict=True)
    return [[item for item in items if item not in history][:count] for items, history in rows]


@pytest.mark.parametrize("beam", [1, 4])
def test_final_rankings_are_those_of_a_beam_as_wide_as_the_catalogue(make: Maker, histories: Tensor, beam: int) -> None:
    full = make(ITEMS).best(histories, ITEMS)
    found = make(beam).rankings(bare(histories), EvaluateConfig(beam=1, k=[1, 7]))
    assert found["raw"].items.tolist() == full.items[:, :7].tolist()
    assert_same(found["raw"].scores, full.scores[:, :7], 1e-4)
    assert found["excluded"].items.tolist() == without(full, histories, 7)
    assert all(bool(ranking.certified(7).all()) for ranking in found.values())


def test_a_narrow_search_is_certified_only_where_it_is_right_and_filters_inside(make: Maker, histories: Tensor) -> None:
    full, config = make(ITEMS).best(histories, ITEMS), EvaluateConfig(beam=1, k=[1, 7], exact=False)
    found = make(7).rankings(bare(histories), config)
    wanted = {"raw": full.items[:, :7].tolist(), "excluded": without(full, histories, 7)}
    for kind, ranking in found.items():
        right = torch.tensor([one == other for one, other in zip(ranking.items.tolist(), wanted[kind], strict=True)])
        assert bool(right[ranking.certified(7)].all())
        assert not bool(right.all())
        assert bool((ranking.items >= 0).all())
    alone = make(7).rankings(bare(histories), config, ("excluded",))  # as validation does
    assert list(alone) == ["excluded"]
    assert alone["excluded"].items.tolist() == make(7).best(histories, 7, deny=histories).items.tolist()


def test_an_exact_list_under_filters_is_the_best_of_what_is_allowed(make: Maker, histories: Tensor) -> None:
    full = make(ITEMS).best(histories, ITEMS)
    pool = torch.arange(0, ITEMS, 2).expand(len(histories), -1)
    asked: Requests = replace(bare(histories), pool=pool, deny=histories)
    found = make(1).rank(asked, 6, exact=True)
    rows = zip(full.items.tolist(), histories.tolist(), strict=True)
    wanted = [[item for item in items if item % 2 == 0 and item not in history][:6] for items, history in rows]
    assert found.items.tolist() == [row + [-1] * (6 - len(row)) for row in wanted]
    assert bool(found.certified(6).all())


class Beamed(TrainedBaseline):
    """A plug-in that says nothing of how it ranks."""

    config = TrainingConfig()
    per = "user"

    def loss(self, batch: SequenceBatch) -> Tensor:
        raise NotImplementedError

    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        return Ranking(
            torch.arange(width).repeat(len(histories), 1), -torch.arange(float(width)).repeat(len(histories), 1)
        )


def test_lists_of_a_baseline_that_does_not_say_it_is_exact_are_not_certified() -> None:
    class Exact(Beamed):
        exact = True

    requests, config = bare(torch.tensor([[3]])), EvaluateConfig(k=[2])
    for kind, certified in ((Beamed, [False]), (Exact, None)):
        model = kind()
        model.problem = PROBLEM
        found = model.rankings(requests, config)["raw"]
        assert (None if found.bound is None else found.certified(2).tolist()) == certified
    beamed = Beamed()
    with pytest.raises(UnsupportedError, match="set `exact = True` in its class"):
        beamed.rank(requests, 2, exact=True)
