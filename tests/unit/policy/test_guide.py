"""A guide against sums over the whole catalogue, alone and mixed into a policy."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.errors import UnsupportedError
from genrl.layouts.base import Layout
from genrl.policy.distribution import Sampling
from genrl.policy.guide import Guide, Masses, Prior
from genrl.policy.model import Policy
from genrl.policy.reference import Reference
from genrl.policy.score import score
from genrl.policy.search import search
from genrl.policy.write import write
from genrl.sid.trie import Trie
from tests.helpers import assert_same
from tests.models import SIZES, every_item, make_codes, make_layout, make_policy, make_prompts, make_thinking

ITEMS, WEIGHT = 60, 0.3
CODES = make_codes(ITEMS)
TRIE = Trie.build(CODES, SIZES, torch.arange(ITEMS))


class Likings:
    """What a user who saw item i last likes: a random table, some items of it hardly at all."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.table = torch.randn(ITEMS + 1, ITEMS, generator=generator)
        self.table[:, ::7] -= 40.0
        self.asked = 0

    def log_probs(self, requests: Requests) -> Tensor:
        self.asked += len(requests)
        return self.table[requests.history[:, -1]].log_softmax(1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(thinking=True)


@pytest.fixture(scope="module")
def requests(policy: Policy) -> Requests:
    return replace(make_prompts(policy), history=torch.tensor([[3, 9], [-1, 1], [5, 9], [3, 9], [-1, 2]]))


@pytest.fixture
def guided(policy: Policy) -> Policy:
    policy.prior = Prior(Guide(Likings(), TRIE), WEIGHT)
    yield policy
    policy.prior = None


def naive(layout: Layout, own: Tensor, theirs: Tensor, weight: float, temperature: float = 1.0) -> Tensor:
    """Log-probability [P, I, K] of each code of each item under the mixture, by loops over prefixes.

    `own` [P, I, K] are those of the policy alone, at temperature 1, `theirs` [P, I] those of the guide's items.
    """
    found = torch.zeros_like(own)
    codes = layout.codes.tolist()
    for user in range(len(own)):
        for level in range(own.shape[2]):
            for prefix in {tuple(row[:level]) for row in codes}:
                children: dict[int, list[int]] = {}
                for item, row in enumerate(codes):
                    if tuple(row[:level]) == prefix:
                        children.setdefault(row[level], []).append(item)
                logits = torch.stack(
                    [
                        (1 - weight) * own[user, items[0], level] + weight * theirs[user, items].double().logsumexp(0)
                        for items in children.values()
                    ]
                )
                for items, value in zip(children.values(), (logits / temperature).log_softmax(0), strict=True):
                    found[user, items, level] = value
    return found


def expected(policy: Policy, layout: Layout, requests: Requests, temperature: float = 1.0) -> Tensor:
    prior, policy.prior = policy.prior, None
    own = score(policy, layout, requests, every_item(layout, requests)).logps.view(len(requests), ITEMS, -1).double()
    policy.prior = prior
    return naive(layout, own, prior.guide.recommender.log_probs(requests), prior.weight, temperature)


@pytest.mark.parametrize("low", [0.0, -500.0])
def test_masses_are_sums_over_the_items_below_however_small(policy, low):
    generator = torch.Generator().manual_seed(1)
    logs = torch.randn(4, ITEMS, generator=generator) + low * (torch.arange(ITEMS) < 50)
    masses = Masses(TRIE, Guide(Likings(), TRIE).paths, logs, torch.tensor([2, 0, 3]))
    layout = make_layout(policy, CODES)
    states = layout.replay(layout.compose(torch.arange(ITEMS)[:, None]))
    for level in range(3):
        for request, row in enumerate([2, 0, 3]):
            state = states.each(lambda value, at=level: value[:, at])
            legal = layout.legal(level, state)
            found = masses.behind(legal, torch.full((ITEMS,), request))
            for item in range(ITEMS):
                for code in range(SIZES[level]):
                    below = (CODES[:, :level] == CODES[item, :level]).all(1) & (CODES[:, level] == code)
                    wanted = logs[row, below].double().logsumexp(0).float()
                    assert_same(found[item, code] - low, wanted - low, 5e-5)
            edges = TRIE.levels[level].codes.numel()
            which = torch.arange(edges).flip(0)
            every = masses.edges(level, which, torch.full((2,), request))
            assert_same(every[which[legal.nodes.clamp(min=0)], 1].masked_fill(~legal.mask, float("-inf")), found, 5e-5)


def test_items_that_share_a_sid_add_up(policy):
    codes = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    layout = make_layout(policy, codes)
    trie = layout.catalogue.trie
    masses = Masses(trie, Guide(Likings(), trie).paths, torch.tensor([[0.2, 0.3, 0.5]]).log(), torch.tensor([0]))
    start = layout.start(1)
    assert_same(masses.behind(layout.legal(0, start), start.owner).exp()[0, 0], 1.0)
    second = layout.advance(start, torch.tensor([layout.tokens.first_ids[0]]), 0)
    assert_same(masses.behind(layout.legal(1, second), start.owner).exp()[0, :3], [0.5, 0.5, 0.0])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scores_of_every_item_are_those_of_the_mixture(guided, requests, temperature):
    layout = make_layout(guided, CODES)
    wanted = expected(guided, layout, requests, temperature)
    assert_same(wanted.sum(2).exp().sum(1), torch.ones(5).double(), 1e-6)
    scores = score(guided, layout, requests, every_item(layout, requests), Sampling(temperature))
    assert_same(scores.logps.view(5, ITEMS, -1), wanted.float(), 1e-4)


def test_samples_search_and_certificates_are_of_the_mixture(guided, requests):
    layout = make_layout(guided, CODES)
    wanted = expected(guided, layout, requests)
    noise = torch.rand(5, 8, 3, generator=torch.Generator().manual_seed(0))
    drawn = write(guided, layout, requests, 8, noise=noise)
    own = wanted.gather(1, drawn.items.view(5, 8, 1).expand(-1, -1, 3)).flatten(0, 1)
    assert_same(drawn.logps.masked_fill(~drawn.chosen, 0), own.float().masked_fill(~drawn.chosen, 0), 1e-4)
    assert_same(score(guided, layout, requests, drawn).logps, drawn.logps)
    best, items = wanted.sum(2).sort(1, descending=True)
    narrow, _ = search(guided, layout, requests, 4, exact=4)
    assert bool(narrow.certified(4).all())
    assert narrow.items.equal(items[:, :4])
    assert_same(narrow.scores, best[:, :4].float(), 1e-4)
    wide, _ = search(guided, layout, requests, ITEMS)
    assert_same(wide.scores, best.float(), 1e-4)


def test_a_filter_of_items_leaves_the_scores_of_the_others(guided, requests):
    layout = make_layout(guided, CODES)
    wanted = expected(guided, layout, requests).sum(2)
    filtered = replace(requests, deny=torch.arange(0, 50).repeat(5, 1))
    found, _ = search(guided, layout, filtered, 10)
    assert found.items.sort(1).values.tolist() == [list(range(50, 60))] * 5
    assert_same(found.scores, wanted.gather(1, found.items).float(), 1e-4)
    stocked, _ = search(guided, layout.only(torch.arange(ITEMS) >= 50), requests, 10)
    assert_same(stocked.scores, found.scores)


def test_gradients_go_through_the_policy_alone(guided, requests):
    layout = make_layout(guided, CODES)
    every = every_item(layout, requests)
    weights = torch.randn(every.tokens.shape, generator=torch.Generator().manual_seed(2)).double()
    parameters = list(guided.trainable().values())
    wanted = torch.autograd.grad((expected(guided, layout, requests).flatten(0, 1) * weights).sum(), parameters)
    found = torch.autograd.grad((score(guided, layout, requests, every).logps * weights).sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other, 2e-3)
    assert any(float(one.abs().max()) > 0.1 for one in wanted)


def test_the_reference_is_under_the_same_prior(guided, requests):
    layout = make_layout(guided, CODES)
    every = every_item(layout, requests)
    with torch.no_grad():
        own = score(guided, layout, requests, every).logps
        assert_same(score(Reference(guided), layout, requests, every).logps, own)


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_words_are_the_policys_own_and_codes_are_mixed_behind_them(policy, requests, order):
    layout = make_thinking(policy, CODES, order=order, **({"total": 12} if order == "interleaved" else {}))
    noise = torch.rand(5, 3, layout.length, generator=torch.Generator().manual_seed(0))
    drawn = write(policy, layout, requests, 3, noise=noise)
    with torch.no_grad():
        alone = score(policy, layout, requests, drawn)
        policy.prior = Prior(Guide(Likings(), TRIE), WEIGHT)
        mixed = score(policy, layout, requests, drawn)
        again = write(policy, layout, requests, 3, noise=noise)
        assert_same(again.logps, score(policy, layout, requests, again).logps)
        search(policy, layout, requests, 4)
        policy.prior = None
    words = ~drawn.item_mask
    assert_same(mixed.logps.masked_fill(~words, 0), alone.logps.masked_fill(~words, 0))
    assert float((mixed.logps - alone.logps).abs().max()) > 0.1


def test_a_guide_is_asked_once_for_each_history_and_may_be_less_sure(requests):
    likings = Likings()
    layout = make_layout(make_policy(), CODES)
    start = layout.start(5)
    legal = layout.legal(0, start)
    sure, unsure = (
        Guide(likings, TRIE, temperature).masses(requests.history).behind(legal, start.owner)
        for temperature in (1.0, 50.0)
    )
    assert likings.asked == 2 * 4
    assert_same(sure.exp().sum(1), torch.ones(5))
    assert float(unsure[legal.mask].std()) < float(sure[legal.mask].std())


def test_probabilities_over_the_whole_vocabulary_are_refused(guided, requests):
    layout = make_layout(guided, CODES)
    with pytest.raises(UnsupportedError, match=r"a prior says .* Set rollout.normalize=legal"):
        score(guided, layout, requests, every_item(layout, requests), Sampling(normalize="vocab"))
