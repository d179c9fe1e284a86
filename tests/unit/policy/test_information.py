"""What a thought tells of the target, against one plain forward pass per text."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Completions, Requests
from genrl.errors import ConfigError
from genrl.layouts.base import Layout
from genrl.policy.information import check_tells, greedy_information, information, informed
from genrl.policy.model import Policy
from genrl.policy.write import write
from genrl.training.diagnostics import information_values
from tests.helpers import assert_same
from tests.models import make_codes, make_layout, make_policy, make_prompts, make_thinking

CODES = make_codes()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(thinking=True)


@pytest.fixture(scope="module")
def requests(policy: Policy) -> Requests:
    return make_prompts(policy)


def drawn(policy: Policy, layout: Layout, requests: Requests) -> Completions:
    noise = torch.rand(5, 3, layout.length, generator=torch.Generator().manual_seed(0))
    return write(policy, layout, requests, 3, noise=noise)


def log_probs(policy: Policy, text: list[int], item: int) -> list[float]:
    """Of an item's codes behind a text, each over the codes that some item has behind the same ones."""
    found = []
    for level, code in enumerate(CODES[item].tolist()):
        before = CODES[item, :level]
        legal = CODES[(CODES[:, :level] == before).all(1), level].unique()
        tokens = [*text, *(before + torch.tensor(policy.first_ids[:level])).tolist()]
        logits = policy.base(torch.tensor([tokens])).logits[0, -1, policy.first_ids[level] + legal]
        found.append(float(logits.log_softmax(0)[legal == code]))
    return found


@torch.no_grad()
@pytest.mark.parametrize("on_budget", ["close", "fail"])
def test_it_is_the_gap_of_log_probabilities_behind_the_text_and_without_it(policy, requests, on_budget):
    layout = make_thinking(policy, CODES, on_budget=on_budget, **({"budget": 40} if on_budget == "fail" else {}))
    completions = drawn(policy, layout, requests)
    found = information(policy, layout, requests, completions)
    wanted: list[list[float]] = []
    for row, tokens in enumerate(completions.tokens):
        prompt = requests.tokens[row // 3][requests.mask[row // 3]].tolist()
        item = int(requests.wanted.items[row // 3, 0])
        if completions.items[row, 0] < 0:
            wanted.append([float("-inf")] * 3)
            continue
        text = tokens[completions.written[row] & ~completions.item_mask[row]].tolist()
        pairs = zip(log_probs(policy, [*prompt, *text], item), log_probs(policy, prompt, item), strict=True)
        wanted.append([behind - without for behind, without in pairs])
    expected = torch.tensor(wanted)
    named = completions.items[:, 0] >= 0
    assert bool(named.any())
    assert on_budget == "close" or not bool(named.all())
    assert float(expected[named].abs().max()) > 0.1
    assert_same(found[named], expected[named], 1e-4)
    assert torch.equal(found[~named], expected[~named])


@torch.no_grad()
def test_of_some_completions_it_is_what_it_is_of_all(policy, requests):
    layout = make_thinking(policy, CODES)
    completions = drawn(policy, layout, requests)
    whole = information(policy, layout, requests, completions)
    some = informed(policy, layout, requests, completions, 2).information
    asked = torch.tensor([True, True, False] * 5)
    assert_same(some[asked], whole[asked], 1e-5)
    assert bool(some[~asked].isnan().all())
    assert informed(policy, layout, requests, completions, 0) is completions
    lost = whole.clone()
    lost[0] = float("-inf")
    values = information_values(replace(completions, information=lost))
    assert_same(values["rollout/information"], whole[1:].sum(1).mean())
    assert information_values(completions) == {}


@torch.no_grad()
def test_the_likeliest_words_are_those_of_a_greedy_completion(policy, requests):
    layout = make_thinking(policy, CODES)
    greedy = write(policy, layout, requests, 1)
    found: Tensor = greedy_information(policy, layout, requests)
    assert_same(found, information(policy, layout, requests, greedy).sum(1), 1e-6)


def test_layouts_without_a_whole_thought_before_the_item_are_refused(policy):
    check_tells(make_thinking(policy, CODES), "reward")
    for layout in (make_layout(policy, CODES), make_thinking(policy, CODES, order="interleaved")):
        with pytest.raises(ConfigError, match=r"^reward compares .*layout\.order=tail"):
            check_tells(layout, "reward")
