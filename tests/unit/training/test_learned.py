"""A stage that teaches nothing says so, with its reason."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Requests, Rewards
from genrl.runs.session import Session
from genrl.training.learned import Learned, fingerprint
from tests.runs import changed, rl_module, sft_module, train

NO_KL = ("objective=grpo", "objective.kl_coef=0", "rl.validate_every=1")


class Judge:
    """A verifier that gives two rewards, one rollout after the other, and a third one that does not count."""

    uses_information = False

    def __init__(self, *outcomes: Tensor) -> None:
        self.outcomes = list(outcomes)
        self.rewards = dict.fromkeys(("one", "two", "three"))
        self.step_names = ()

    def __call__(self, rollout: Completions, requests: Requests) -> Rewards:
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        values = {"one": outcome, "two": torch.full((32, 2), 0.5), "three": torch.zeros(32)}
        return Rewards(values, {"one": 1.0, "two": 1.0, "three": 0.0})


def learned(session: Session, folder: Path, *outcomes: Tensor, options: tuple[str, ...] = NO_KL) -> list[str]:
    module, watch = rl_module(changed(session, folder, *options), folder), Learned("rl")
    module.verifier = Judge(*outcomes)
    train(module, len(outcomes), watch)
    return watch.notes(module)


VARIED, SAME = torch.arange(32.0), torch.ones(32)
TWO = "reward 'two' was 0.5 for all 64 completions, so it tells none from another."


def test_constant_rewards_and_dead_groups_are_the_reason_why_nothing_was_learned(session, tmp_path):
    dead = torch.arange(8.0).repeat_interleave(4)  # differs between groups, not within
    with pytest.warns(UserWarning, match="stage rl, so far: reward 'two' was 0.5 for all 32 .*No group of any rollout"):
        found = learned(session, tmp_path, dead, dead, options=(*NO_KL, "rl.weight_decay=0"))
    nothing = "Nothing was learned: the weights are those that the stage began with."
    assert found == [nothing, TWO, "No group of any rollout had an advantage."]


def test_weights_that_move_for_other_reasons_did_not_learn_from_rewards(session, tmp_path):
    options = (*NO_KL, "rl.weight_decay=0.1")
    first, one, two, *rest = learned(session, tmp_path, SAME, SAME, options=options)
    assert first.startswith("Nothing was learned from rewards: the weights moved for other reasons")
    assert one == TWO.replace("two", "one").replace("0.5", "1")
    assert (two, rest) == (TWO, ["No group of any rollout had an advantage."])


def test_a_reward_that_varied_once_is_not_spoken_of(session, tmp_path):
    assert learned(session, tmp_path, SAME, VARIED) == [TWO]


def test_what_was_noted_goes_through_a_checkpoint(session, tmp_path):
    module, watch, again = rl_module(changed(session, tmp_path, *NO_KL), tmp_path), Learned("rl"), Learned("rl")
    module.verifier = Judge(SAME, VARIED)
    train(module, 2, watch)
    again.load_state_dict(watch.state_dict())
    assert again.notes(module) == watch.notes(module) == [TWO]
    assert again.told


def test_a_supervised_stage_without_a_step_learned_nothing(session, tmp_path):
    module, watch = sft_module(session, tmp_path), Learned("align")
    module.config.learning_rate, rate = 0.0, module.config.learning_rate
    try:
        train(module, 2, watch)
        module.skips.total = 1
        assert watch.notes(module) == [
            "Nothing was learned: the weights are those that the stage began with.",
            "1 of 2 steps were skipped, because their loss or gradient was NaN or infinite.",
        ]
    finally:
        module.config.learning_rate = rate
    before = fingerprint(module)
    with torch.no_grad():
        next(iter(module.trainable().values())).view(-1)[0] += 1e-3
    assert fingerprint(module) != before
