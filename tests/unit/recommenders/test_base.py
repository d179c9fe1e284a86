from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking
from genrl.errors import ConfigError, UnknownComponentError
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders import BASELINES, Problem, TrainedBaseline, TrainingConfig
from genrl.recommenders.sasrec import SASRec
from tests.unit.recommenders.problems import problem_of


class Unchanging(TrainedBaseline):
    """Ranks the catalogue in its own order."""

    per = "user"

    def __init__(self, config: TrainingConfig, *, problem: Problem) -> None:
        super().__init__()
        self.config, self.size = config, len(problem.dataset.catalog)

    def loss(self, batch: SequenceBatch) -> Tensor:
        return batch.targets.sum().float()

    def best(self, histories: Tensor, width: int, deny: Tensor | None = None) -> Ranking:
        items = torch.arange(self.size)[:width].expand(len(histories), -1)
        return Ranking(items, -items.float())


def test_a_recommender_must_say_how_it_learns_and_ranks() -> None:
    with pytest.raises(TypeError, match="abstract"):
        TrainedBaseline()  # type: ignore[abstract]
    model = Unchanging(TrainingConfig(), problem=problem_of([[0, 1, 2]]))
    assert model.best(torch.zeros(2, 1, dtype=torch.int64), 2).items.tolist() == [[0, 1], [0, 1]]


def test_a_baseline_is_built_by_name_from_its_own_options() -> None:
    problem = problem_of([[0, 1, 2]])
    model = BASELINES.build("sasrec", {"hidden": 4, "learning_rate": 0.5}, problem=problem)
    assert isinstance(model, SASRec)
    assert (model.config.hidden, model.config.learning_rate) == (4, 0.5)
    with pytest.raises(UnknownComponentError, match="Did you mean 'sasrec'"):
        BASELINES.build("sasrecc", problem=problem)


def test_every_baseline_trains_with_options_of_its_own() -> None:
    for name in ("sasrec", "rearec"):
        entry = BASELINES.entry(name)
        assert entry.config is not None
        assert issubclass(entry.config, TrainingConfig)
        assert entry.paper
        assert entry.title


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_epochs", 0),
        ("batch", 0),
        ("patience", -1),
        ("max_length", 0),
        ("validate_every", 0.0),
        ("learning_rate", 0.0),
        ("final_learning_rate", -0.1),
        ("weight_decay", -1.0),
        ("warmup_steps", -1),
    ],
)
def test_options_of_training_that_cannot_work_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{option}={value}"):
        TrainingConfig(**{option: value})  # type: ignore[arg-type]
