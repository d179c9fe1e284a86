"""What all baselines that learn have in common."""

from typing import Any

import pytest
import torch

from genrl.errors import ConfigError, UnknownComponentError
from genrl.prompts.packing import SequenceBatch
from genrl.recommenders import BASELINES, TrainedBaseline, TrainingConfig
from tests.unit.recommenders.problems import PROBLEM, model_of, problem_of, rows_of, train

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sasrec", {"loss": "cross_entropy"}),
    ("sasrec", {"loss": "binary", "negatives": 4}),
    ("rearec", {"method": "ensemble", "kl_weight": 0.01}),
    ("rearec", {"method": "progressive", "contrast_weight": 0.1}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


def test_a_trained_baseline_must_say_how_it_learns_and_ranks():
    with pytest.raises(TypeError, match="abstract"):
        TrainedBaseline()


@every_variant
def test_a_rule_is_learnt(name, options):
    problem = problem_of([[item, (item + 1) % 7] for item in range(7)])
    torch.manual_seed(0)
    model: Any = BASELINES.build(name, {"hidden": 16, "max_length": 4, "dropout": 0.0, **options}, problem=problem)
    loss = train(model, problem, steps=80, rate=0.02 if name == "sasrec" else 0.01)
    assert name != "sasrec" or loss < 0.1
    histories = torch.tensor([[-1, item] for item in range(7)])
    ranking = model.best(histories, 1, deny=histories)  # a row's own items are no negatives: nothing keeps them down
    assert ranking.items[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 0]


@every_variant
def test_the_gradient_reaches_every_parameter_and_is_zero_without_rows(name, options):
    model = model_of(name, dropout=0.0, **options).train()
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    value = model.loss(SequenceBatch(nothing, nothing.bool(), torch.tensor(3.0)))
    value.backward()
    assert value.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is not None  # other processes wait for it
        assert not parameter.grad.any()
    model.loss(rows_of([1, 2, 3, 4, 5, 6], per=model.per)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
    assert not model.encoder.items.weight.grad[0].any()
    assert len(model.eval().best(nothing, 3).items) == 0


@every_variant
def test_mixed_precision_trains_and_ranks_by_scores_in_full_precision(name, options):
    model = model_of(name, dropout=0.0, **options)
    batch = rows_of([1, 2, 3], [4, 0], [7, 0, 1, 11, 2], per=model.per)
    torch.manual_seed(0)
    whole = model.loss(batch).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        loss = model.loss(batch)
        found = model.best(torch.tensor([[-1, 4], [2, 3]]), 3)
    loss.backward()
    assert 0 < abs(loss.item() - whole) < 0.1 * abs(whole)
    assert found.items.shape == (2, 3)
    assert not torch.equal(found.scores, found.scores.bfloat16().float())


@pytest.mark.parametrize("name", ["sasrec", "rearec"])
@pytest.mark.parametrize("width", [0, 3])
def test_without_a_history_the_most_popular_items_come_first(name, width):
    model, nothing = model_of(name), torch.full((2, width), -1)
    ranking = model.best(nothing, 4)
    assert ranking.items[:, :2].tolist() == [[3, 5], [3, 5]]
    assert ranking.scores[0].tolist() == [3.0, 2.0, 1.0, 1.0]
    assert 3 not in model.best(nothing, 4, deny=torch.tensor([[3], [3]])).items


def test_a_baseline_is_built_by_name():
    with pytest.raises(UnknownComponentError, match="Did you mean 'sasrec'"):
        BASELINES.build("sasrecc", problem=PROBLEM)
    for name in ("sasrec", "rearec", "tiger", "lc_rec"):
        entry = BASELINES.entry(name)
        assert issubclass(entry.config, TrainingConfig)
        assert entry.paper
        assert entry.title


@pytest.mark.parametrize(
    ("name", "option", "value", "said"),
    [
        *(
            ("sasrec", option, 0, f"{option}.*(at least 1|above 0)")
            for option in ("max_epochs", "batch", "max_length", "learning_rate")
        ),
        *(("sasrec", option, -1, f"{option}.* at least 0") for option in ("patience", "warmup_steps")),
        *(("sasrec", option, -0.5, f"{option}.* at least 0") for option in ("final_learning_rate", "weight_decay")),
        ("sasrec", "validate_every", 0.0, "validate_every.* above 0"),
        ("sasrec", "heads", 3, "does not divide hidden=64"),
        ("sasrec", "negatives", 0, "at least 1"),
        ("sasrec", "loss", "hinge", "cross_entropy"),
        ("rearec", "steps", -1, "cannot be negative"),
        ("rearec", "temperature", 0.0, "above 0"),
    ],
)
def test_options_that_cannot_work_are_refused(name, option, value, said):
    with pytest.raises(ConfigError, match=said):
        BASELINES.build(name, {option: value}, problem=PROBLEM)
