"""What a teacher says of completions, against loops over the children of each prefix."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Requests, Rewards
from genrl.layouts.base import Layout
from genrl.objectives import OBJECTIVES
from genrl.policy.distribution import Sampling
from genrl.policy.guide import Guide, Prior
from genrl.policy.model import Policy
from genrl.policy.score import score
from genrl.policy.teach import taught
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import every_item, make_layout, make_policy, make_prompts, make_thinking
from tests.unit.policy.test_guide import CODES, ITEMS, TRIE, Likings, naive

HOT = Sampling(temperature=1.5)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(thinking=True)


@pytest.fixture(scope="module")
def requests(policy: Policy) -> Requests:
    return replace(make_prompts(policy), history=torch.tensor([[3, 9], [-1, 1], [5, 9], [3, 9], [-1, 2]]))


def drawn(policy: Policy, layout: Layout, requests: Requests, sampling: Sampling) -> Completions:
    noise = torch.rand(5, 6, layout.length, generator=torch.Generator().manual_seed(0))
    return write(policy, layout, requests, 6, sampling, noise)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_gap_and_divergence_are_those_of_loops_over_the_trie(policy, requests, weight):
    layout, teacher = make_layout(policy, CODES), Likings()
    theirs = teacher.log_probs(requests)
    zeros = torch.zeros(5, ITEMS, 3, dtype=torch.float64)
    wanted = naive(layout, zeros, theirs, 1.0)  # the teacher alone
    policy.prior = Prior(Guide(Likings(), TRIE), weight) if weight else None
    completions = drawn(policy, layout, requests, HOT)
    found = taught(policy, layout, requests, completions, Guide(teacher, TRIE), HOT)
    own = score(policy, layout, requests, every_item(layout, requests), HOT).logps.view(5, ITEMS, 3).double()
    policy.prior = None
    for row, item in enumerate(completions.items[:, 0].tolist()):
        user = row // 6
        for level in range(3):
            if not completions.chosen[row, level]:
                assert (found.teacher_gap[row, level], found.teacher_kl[row, level]) == (0, 0)
                continue
            below = [i for i in range(ITEMS) if CODES[i, :level].tolist() == CODES[item, :level].tolist()]
            children = {int(CODES[i, level]): i for i in below}.values()
            logs = [(own[user, i, level], wanted[user, i, level]) for i in children]
            divergence = sum(float(pi.exp() * (pi - p)) for pi, p in logs)
            gap = float(wanted[user, item, level] - own[user, item, level])
            assert_same(found.teacher_gap[row, level], gap, 2e-4)
            assert_same(found.teacher_kl[row, level], divergence, 2e-4)
            expectation = sum(float(pi.exp() * (p - pi)) for pi, p in logs) + float(found.teacher_kl[row, level])
            assert abs(expectation) < 2e-4


@torch.no_grad()
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_of_thinking_the_codes_are_judged_and_the_words_are_not(policy, requests, order):
    layout = make_thinking(policy, CODES, order=order, **({"total": 12} if order == "interleaved" else {}))
    completions = drawn(policy, layout, requests, Sampling())
    teacher = Likings()
    found = taught(policy, layout, requests, completions, Guide(teacher, TRIE))
    codes = completions.chosen & completions.item_mask
    gap = found.teacher_gap
    assert (gap[~codes] == 0).all()
    wanted = naive(layout, torch.zeros(5, ITEMS, 3, dtype=torch.float64), teacher.log_probs(requests), 1.0)
    rows, columns = codes.nonzero(as_tuple=True)
    levels = (codes | completions.item_mask).long().cumsum(1)[rows, columns] - 1
    assert len(rows) > 30
    item, user = completions.items[rows, 0], rows // 6
    named = item >= 0
    told = wanted[user, item.clamp(min=0), levels] - completions.logps[rows, columns]
    assert_same(gap[rows, columns][named], told[named].float(), 3e-4)


def gradient_of(values: Tensor, policy: Policy) -> list[Tensor]:
    return list(torch.autograd.grad(values, list(policy.trainable().values()), retain_graph=True))


def test_the_expected_gradient_of_the_loss_is_that_of_the_divergence(policy, requests):
    """At the first code, where all codes can be written once each and weighed by their probability."""
    layout, teacher = make_layout(policy, CODES), Guide(Likings(), TRIE)
    requests = requests.rows(torch.tensor([0]))
    every = every_item(layout, requests)
    codes = sorted(set(CODES[:, 0].tolist()))
    rows = torch.tensor([CODES[:, 0].tolist().index(code) for code in codes])
    first = replace(every, group_size=1).rows(rows)
    first = replace(first, group_size=len(rows), chosen=first.chosen & (torch.arange(3) == 0))
    with torch.no_grad():
        first = replace(first, logps=score(policy, layout, requests, first).logps)
        judged = taught(policy, layout, requests, first, teacher)
    objective = OBJECTIVES.build("opd")
    scores = score(policy, layout, requests, judged)
    experience = objective.prepare(judged, Rewards({"none": torch.zeros(len(rows))}, {"none": 1.0}))
    chances = judged.logps[:, :1].exp()
    weighed = replace(experience, weights=experience.weights * len(rows) * chances)
    found = gradient_of(objective.loss(scores, weighed).loss, policy)
    logs = scores.logps[:, 0]
    start = layout.start(1)
    theirs = teacher.masses(requests.history).behind(layout.legal(0, start), start.owner)[0, codes]
    divergence = (logs.exp() * (logs - theirs.log_softmax(0))).sum()
    for one, other in zip(found, gradient_of(divergence, policy), strict=True):
        assert_same(one, other, 1e-5)
