"""Exact rankings of all items against searches that are as wide as the catalogue."""

from dataclasses import replace

import pytest
import torch

from genrl.batches import Requests
from genrl.policy import exhaustive
from genrl.policy.edges import log_masses
from genrl.policy.exhaustive import leaf_log_probs, rank_all
from genrl.policy.guide import Guide, Prior
from genrl.policy.search import search
from tests.helpers import assert_same
from tests.unit.policy.test_item import CODES, HISTORIES, TRIE, ask, make, make_layout

FILTERS: dict[str, dict[str, torch.Tensor]] = {
    "none": {},
    "deny": {"deny": HISTORIES},
    "pool": {"pool": torch.arange(30, 51).expand(4, -1)},
    "both": {"pool": torch.arange(18, 51).expand(4, -1), "deny": torch.tensor([[20, 50], [48, 49], [-1, 3], [-1, -1]])},
}


def test_probabilities_of_all_items_sum_to_one():
    policy = make().double()
    found = policy.grow(ask(), 1, 0).begin(lambda said: leaf_log_probs(said, TRIE))
    assert found.shape == (TRIE.leaves, 4)
    assert_same(found.exp().sum(0), torch.ones(4, dtype=found.dtype), 1e-6)


def test_a_family_far_below_the_best_edge_keeps_its_probabilities():
    policy = make(softmax="levels")
    layout, requests = make_layout(policy), ask()
    with torch.no_grad():
        policy.model.edges.biases[1][:3] += 300.0
    (found,) = rank_all(policy, layout, [requests], 60)
    wanted, _ = search(policy, layout, requests, 60)
    assert found.items.tolist() == wanted.items.tolist()
    assert_same(found.scores, wanted.scores, 1e-3)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("width", [3, 60])
def test_a_ranking_is_that_of_the_widest_search(name, stock, width):
    keep = torch.ones(len(CODES), dtype=torch.bool)
    keep[[0, 33, 50]] = not stock
    policy = make()
    layout = make_layout(policy, keep if stock else None)
    requests = replace(ask(), **FILTERS[name])
    (found,) = rank_all(policy, layout, [requests], width)
    wanted, _ = search(policy, layout, requests, 60)
    assert found.items.tolist() == wanted.items[:, :width].tolist()
    assert_same(found.scores, wanted.scores[:, :width])
    assert_same(found.bound, wanted.scores[:, width] if width == 3 else torch.full((4,), -torch.inf))
    assert bool(found.certified(3).all())


def test_users_are_ranked_a_few_at_a_time_and_under_several_filters(monkeypatch):
    policy = make()
    layout, requests = make_layout(policy), ask()
    denied = replace(requests, deny=HISTORIES)
    whole = rank_all(policy, layout, [requests, denied], 9)
    monkeypatch.setattr(exhaustive, "LOGITS", 3 * TRIE.leaves)
    parts = rank_all(policy, layout, [requests, denied], 9)
    for one, other in zip(whole, parts, strict=True):
        assert one.items.equal(other.items)
        assert_same(one.scores, other.scores)
    nobody: Requests = requests.rows(torch.tensor([], dtype=torch.int64))
    assert rank_all(policy, layout, [nobody], 9)[0].items.shape == (0, 9)


@pytest.mark.parametrize("name", FILTERS)
def test_a_prior_has_its_say_in_rankings_of_all_as_in_searches(name):
    class Likings:
        device = torch.device("cpu")

        def log_probs(self, requests: Requests) -> torch.Tensor:
            table = torch.randn(60, len(CODES), generator=torch.Generator().manual_seed(0))
            return (3 * table)[requests.history[:, -1]].log_softmax(1)

    policy = make()
    layout, requests = make_layout(policy), replace(ask(), history=HISTORIES, **FILTERS[name])
    (alone,) = rank_all(policy, layout, [requests], 60)
    policy.prior = Prior(Guide(Likings(), TRIE), 0.6)
    (found,) = rank_all(policy, layout, [requests], 60)
    wanted, _ = search(policy, layout, requests, 60)
    assert found.items.tolist() == wanted.items.tolist()
    assert_same(found.scores, wanted.scores, 1e-4)
    assert found.items.tolist() != alone.items.tolist()


@pytest.mark.parametrize("low", [0.0, -300.0])
def test_masses_are_those_of_all_sids_behind_an_edge(low):
    """Also of a family so far below the best SID that their exponentials are 0, and with their gradient."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(TRIE.leaves, 2, generator=generator, dtype=torch.float64)
    scores[:7] += low
    scores.requires_grad_(True)
    sids = [tuple(row) for row in torch.unique(CODES, dim=0).tolist()]
    for level, found in enumerate(log_masses(scores, [table.offsets.diff().long() for table in TRIE.levels])):
        prefixes = sorted({sid[: level + 1] for sid in sids})
        behind = [[number for number, sid in enumerate(sids) if sid[: level + 1] == prefix] for prefix in prefixes]
        wanted = torch.stack([scores[rows].logsumexp(0) for rows in behind])
        assert_same(found, wanted)
        weights = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
        gradients = [
            torch.autograd.grad((value * weights).sum(), scores, retain_graph=True) for value in (found, wanted)
        ]
        assert_same(gradients[0][0], gradients[1][0])
