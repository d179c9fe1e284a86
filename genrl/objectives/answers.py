"""The methods of an objective as training calls them: what code of a user raises or returns is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.errors import ComponentError
from genrl.foreign import calling, described
from genrl.objectives.base import Objective, ObjectiveOutput
from genrl.ops import all_finite, answered, where_not_finite


def called(objective: Objective) -> str:
    """How messages call an objective."""
    return f"objective {objective.name or type(objective).__name__!r}"


@contextmanager
def _working(objective: Objective) -> Iterator[None]:
    with calling(called(objective), objective, *getattr(objective, "pieces", ())):
        yield


def prepared(objective: Objective, completions: Completions, rewards: Rewards) -> Experience:
    """`Objective.prepare`, checked; looks at the device once.

    Raises:
        ComponentError: if it raises, returns no experience, or one whose credit or weights are NaN or infinite.
    """
    with _working(objective):
        found: Any = objective.prepare(completions, rewards)
    _expect(found, Experience, objective, "prepare")
    parts = {"advantages": found.advantages, "weights": found.weights, "mass": found.mass}
    if all_finite(parts.values()):
        return found
    name, (row, value, _) = next((name, at) for name, each in parts.items() if (at := where_not_finite(each)))
    prompt, member = divmod(row, completions.group_size)
    raise ComponentError(
        f"{called(objective)}: {name} of its experience are {value} for "
        f"completion {member + 1} of prompt {prompt + 1} (row {row}), whose reward is "
        f"{float(rewards.outcome[row]):g}. They must be finite: guard divisions and logarithms in its credit and "
        f"reduction."
    )


def loss_of(objective: Objective, scores: Scores, batch: Experience) -> ObjectiveOutput:
    """`Objective.loss`, checked; whether the loss is finite is seen to elsewhere, without waiting for the device.

    Raises:
        ComponentError: if it raises, or its loss is no scalar with gradient, or a statistic no scalar.
    """
    with _working(objective):
        found: Any = objective.loss(scores, batch)
    _expect(found, ObjectiveOutput, objective, "loss")
    loss = answered(found.loss, f"{called(objective)}: ObjectiveOutput.loss", (), scores.logps.device)
    if scores.logps.requires_grad and not loss.requires_grad:
        raise ComponentError(
            f"{called(objective)}: its loss has no gradient, so nothing would be learned. Compute it from "
            f"scores.logps, without detach() and outside torch.no_grad()."
        )
    for name, value in found.stats.items():
        if (isinstance(value, Tensor) and value.dim()) or not isinstance(value, (Tensor, int, float)):
            raise ComponentError(
                f"{called(objective)}: the statistic {name!r} must be a scalar; it is {described(value)}. Take its "
                f"mean, or leave it out."
            )
    return found


def renewed(objective: Objective, scores: Scores, batch: Experience) -> Experience:
    """`Objective.before_step`; a ComponentError if code of a user raises or returns no experience."""
    with _working(objective):
        found = objective.before_step(scores, batch)
    _expect(found, Experience, objective, "before_step")
    return found


def moved_on(objective: Objective) -> None:
    """`Objective.after_step`; a ComponentError if code of a user raises."""
    with _working(objective):
        objective.after_step()


def _expect(value: object, kind: type, objective: Objective, method: str) -> None:
    if not isinstance(value, kind):
        raise ComponentError(
            f"{called(objective)}: {method} must return an {kind.__name__}; it returned {described(value)}."
        )
