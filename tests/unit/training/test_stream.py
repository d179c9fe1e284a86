from collections.abc import Iterator

import pytest
import torch

from genrl.errors import ConfigError
from genrl.training.stream import PromptOrder, StepStream


def test_a_stream_goes_on_at_the_current_step_and_ends_with_the_stage():
    now = 0

    def make(step: int) -> Iterator[tuple[int, int]]:
        yield from ((step, part) for part in range(2))

    stream = StepStream(make, lambda: now, round_steps=3, max_steps=7, per_step=2)
    assert len(stream) == 6
    assert [step for step, _ in stream] == [0, 0, 1, 1, 2, 2]
    now = 4  # stopped inside a round: the next one ends where this one would have
    assert [step for step, _ in stream] == [4, 4, 5, 5]
    now = 6
    assert len(stream) == 2
    assert list(stream) == [(6, 0), (6, 1)]


def test_a_round_that_is_ended_makes_the_whole_step_at_work_and_no_other():
    stream = StepStream(lambda step: iter([(step, 0), (step, 1)]), lambda: 4, round_steps=8, max_steps=9, per_step=2)
    made = []
    for batch in stream:
        made.append(batch)
        if batch == (5, 0):
            stream.end()
    assert made == [(4, 0), (4, 1), (5, 0), (5, 1)]


def test_batches_are_made_one_at_a_time():
    made = []

    def make(step: int) -> Iterator[int]:
        made.append(step)
        yield step

    stream = iter(StepStream(make, lambda: 0, 3, 3))
    next(stream)
    assert made == [0]


def test_every_prompt_is_used_once_per_pass_in_a_new_order():
    order = PromptOrder(torch.arange(100, 110), count=3, seed=0)
    first = torch.cat([order.at(index) for index in range(3)])
    second = torch.cat([order.at(index) for index in range(3, 6)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 9
    assert first.tolist() != second.tolist()
    assert torch.equal(PromptOrder(torch.arange(100, 110), 3, 0).at(4), order.at(4))
    assert order.at(4, attempt=1).tolist() != order.at(4).tolist()


def test_too_few_prompts_are_refused():
    with pytest.raises(ConfigError, match="only 2 RL prompts"):
        PromptOrder(torch.arange(2), 3, 0)
