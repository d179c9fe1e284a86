from dataclasses import replace
from itertools import product

import pytest
import torch

from genrl.errors import UnsupportedError
from genrl.layouts.base import TokenRanges
from genrl.layouts.codes import CodesLayout
from genrl.policy.distribution import Sampling
from genrl.policy.search import search
from genrl.policy.write import write
from tests.helpers import assert_same
from tests.models import SIZES, make_layout, make_policy, make_prompts


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def layout(policy):
    return CodesLayout(TokenRanges(policy.first_ids, policy.sizes))


@pytest.mark.parametrize("normalize", ["legal", "vocab"])
def test_a_search_finds_what_a_catalogue_of_all_codes_has(policy, layout, normalize):
    every = torch.tensor(list(product(*map(range, SIZES))))
    prompts, sampling = make_prompts(policy), Sampling(normalize=normalize)
    found, completions = search(policy, layout, prompts, 12, sampling)
    wanted, others = search(policy, make_layout(policy, every), prompts, 12, sampling)
    assert_same(found.items, wanted.items)
    assert_same(found.scores, wanted.scores)
    assert_same(completions.tokens, others.tokens)
    assert_same(completions.items, others.items)
    assert_same(found.bound, wanted.bound)


def test_the_number_of_an_item_is_that_of_its_codes(layout):
    items = torch.tensor([[0], [35 * 3 + 7 * 2 + 6], [6 * 5 * 7 - 1]])
    tokens = layout.compose(items)
    assert_same(tokens - torch.tensor(layout.tokens.first_ids), torch.tensor([[0, 0, 0], [3, 2, 6], [5, 4, 6]]))
    assert_same(layout.read(tokens, layout.replay(tokens)).items, items)
    broken = tokens.clone()
    broken[1, 1] = 0
    reading = layout.read(broken, layout.replay(broken))
    assert (reading.items[:, 0].tolist(), reading.codes[1].tolist()) == ([0, -1, 209], [3, -1, 6])


def test_completions_are_written_too_and_rankings_are_padded(policy, layout):
    prompts = make_prompts(policy)
    noise = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    written = write(policy, layout, prompts, 4, noise=noise)
    assert_same(layout.compose(written.items), written.tokens)
    few = CodesLayout(TokenRanges((4, 6), (1, 2)))
    state = few.start(1, 2)
    for site, tokens in enumerate(([4, 4], [6, 7])):
        state = few.advance(state, torch.tensor(tokens), site)
    items, scores = few.rank(state, torch.tensor([[-1.0, -2.0]]), 3)
    assert (items.tolist(), scores.tolist()) == ([[0, 1, -1]], [[-1.0, -2.0, float("-inf")]])


def test_filters_and_numbers_that_do_not_fit_are_refused(policy, layout):
    prompts = replace(make_prompts(policy), deny=torch.zeros(5, 1, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="without a catalogue there are no items to filter"):
        search(policy, layout, prompts, 2)
    with pytest.raises(UnsupportedError, match="have no number of 63 bits"):
        CodesLayout(TokenRanges((0,) * 5, (8192,) * 5))
    assert layout.to("cpu") is layout
    assert layout.to("meta").codes.device.type == "meta"
