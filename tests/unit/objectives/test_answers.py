"""What an objective of a user may return, and how everything else is named."""

from dataclasses import dataclass, replace

import pytest
import torch

from genrl.batches import Scores
from genrl.errors import ComponentError
from genrl.objectives import (
    Credit,
    LogLikelihood,
    Objective,
    OutcomeCredit,
    Penalty,
    PolicyObjective,
    Reduction,
    Surrogate,
    TokenMean,
)
from genrl.objectives.answers import called, loss_of, moved_on, prepared, renewed
from tests.property.rollouts import sample
from tests.unit.objectives.test_base import Reinforce


def changed(method, change):
    """An objective of which one method returns something else."""

    class Mine(Reinforce):
        pass

    setattr(Mine, method, lambda self, *given: change(getattr(Reinforce, method)(self, *given)))
    return Mine()


def leave(_):
    raise SystemExit(0)


def fail(_):
    raise KeyError("mine")


def run(objective):
    batch = sample("sid")
    experience = prepared(objective, batch.rollout, batch.rewards)
    scores = Scores(batch.logps.clone().requires_grad_())
    output = loss_of(objective, scores, renewed(objective, scores, experience))
    moved_on(objective)
    return output


def spoiled(name):
    def spoil(found):
        value = getattr(found, name).clone()
        value[5] = float("nan")
        return replace(found, **{name: value})

    return spoil


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("prepare", lambda _: None, "prepare must return an Experience; it returned None"),
        ("prepare", leave, r"called sys.exit\(0\)"),
        ("prepare", fail, "raised KeyError: 'mine' .*test_answers.py, line"),
        ("prepare", spoiled("advantages"), r"advantages of its experience are nan for completion .*\(row 5\), whose"),
        ("prepare", spoiled("mass"), "mass of its experience are nan"),
        ("before_step", lambda _: None, "before_step must return an Experience"),
        ("after_step", fail, "raised KeyError"),
        ("loss", lambda _: None, "loss must return an ObjectiveOutput; it returned None"),
        ("loss", lambda found: found.loss, "loss must return an ObjectiveOutput; it returned a Tensor"),
        ("loss", lambda found: replace(found, loss=found.loss[None]), r"with shape \[\] on cpu; .*shape \[1\]"),
        ("loss", lambda found: replace(found, loss=found.loss.detach()), "its loss has no gradient"),
        ("loss", lambda found: replace(found, loss=float(found.loss.detach())), "it returned a float"),
        ("loss", lambda found: replace(found, loss=torch.tensor(1)), "it returned a Tensor of torch.int64"),
        ("loss", lambda found: replace(found, loss=torch.zeros((), device="meta")), "on meta"),
        ("loss", lambda found: replace(found, stats={"x": torch.ones(3)}), "statistic 'x' must be a scalar; it is a T"),
        ("loss", leave, r"called sys.exit\(0\)"),
    ],
)
def test_answers_of_an_objective_are_checked(method, change, message):
    with pytest.raises(ComponentError, match=f"objective 'Mine'.*{message}"):
        run(changed(method, change))


def test_a_right_answer_passes():
    assert run(Reinforce()).loss.requires_grad
    registered = Reinforce()
    registered.name = "mine"
    assert (called(registered), called(Reinforce())) == ("objective 'mine'", "objective 'Reinforce'")
    assert Objective.name == ""


def piece(base, answer):
    """A piece that returns what it is told, or raises it."""

    def call(self, *given):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return dataclass(frozen=True)(type("Mine", (base,), {"__call__": call, "__module__": __name__}))()


@pytest.mark.parametrize(
    ("base", "answer", "message"),
    [
        (Credit, None, "credit Mine must return a tensor of float32 or .*it returned None"),
        (Credit, torch.ones(2), r"credit Mine .*it returned a Tensor of torch.float32 with shape \[2\]"),
        (Credit, ZeroDivisionError("no"), "objective 'PolicyObjective' raised ZeroDivisionError: no"),
        (Reduction, [1.0], "reduction Mine .*it returned a list of length 1"),
        (Surrogate, torch.ones(2), "surrogate Mine must return a pair, .*it returned a Tensor"),
        (Surrogate, (None, {}), "surrogate Mine must return a tensor .*it returned None"),
        (Penalty, torch.ones(2), "penalty Mine must return a pair"),
        (Penalty, SystemExit(0), r"objective 'PolicyObjective' called sys.exit\(0\)"),
    ],
)
def test_answers_of_pieces_are_checked(base, answer, message):
    kept = {"credit": OutcomeCredit(), "surrogate": LogLikelihood(), "reduction": TokenMean(), "penalties": ()}
    mine = piece(base, answer)
    kept |= {"penalties": (mine,)} if base is Penalty else {base.__name__.lower(): mine}
    with pytest.raises(ComponentError, match=message):
        run(PolicyObjective(**kept))
