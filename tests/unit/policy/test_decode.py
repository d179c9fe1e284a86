from __future__ import annotations

import pytest
import torch

from genrl.policy.decode import beam, rank, sample
from genrl.policy.score import score
from tests.helpers import assert_same
from tests.models import every_item, make_layout, make_policy, make_prompts


@pytest.fixture(scope="module")
def everything() -> tuple:  # type: ignore[type-arg]
    policy = make_policy()
    layout = make_layout(policy)
    prompts = make_prompts(policy)
    batch = every_item(layout, prompts)
    with torch.no_grad():
        exact = score(policy, layout, batch).logps.sum(1).view(5, 60)
    return policy, layout, prompts, exact


def test_a_beam_of_full_width_enumerates_the_catalogue(everything: tuple) -> None:
    policy, layout, prompts, exact = everything
    ranking = rank(policy, layout, prompts.tokens, prompts.mask, 60)
    wanted = exact.sort(dim=1, descending=True)
    assert_same(ranking.scores, wanted.values)
    assert ranking.items.tolist() == wanted.indices.tolist()


def test_a_narrow_beam_returns_distinct_items_best_first(everything: tuple) -> None:
    policy, layout, prompts, exact = everything
    ranking = rank(policy, layout, prompts.tokens, prompts.mask, 7)
    for row in range(5):
        assert len(set(ranking.items[row].tolist())) == 7
        assert_same(ranking.scores[row], exact[row][ranking.items[row]])
    assert bool((ranking.scores.diff(dim=1) <= 0).all())


def test_more_beams_than_items_leave_the_rest_empty(everything: tuple) -> None:
    policy, layout, prompts, _ = everything
    ranking = rank(policy, layout, prompts.tokens, prompts.mask, 80)
    assert (ranking.items >= 0).sum(1).tolist() == [60] * 5
    assert bool((ranking.items[:, 60:] == -1).all())
    assert bool(torch.isinf(ranking.scores[:, 60:]).all())


def test_samples_follow_the_distribution(everything: tuple) -> None:
    policy, layout, prompts, exact = everything
    uniforms = torch.rand(5, 4000, 3, generator=torch.Generator().manual_seed(0))
    drawn = sample(policy, layout, prompts.tokens, prompts.mask, uniforms)
    items = layout.decode(drawn.tokens.flatten(0, 1)).items.view(5, 4000)
    assert bool((items >= 0).all())
    frequency = torch.stack([torch.bincount(row, minlength=60) for row in items]) / 4000
    deviation = (exact.exp() * (1 - exact.exp()) / 4000).sqrt()
    assert bool(((frequency - exact.exp()).abs() < 5 * deviation + 1e-3).all())
    assert_same(drawn.logps.sum(2), exact.gather(1, items))


def test_uniform_numbers_at_the_ends_never_draw_illegal_tokens(everything: tuple) -> None:
    policy, layout, prompts, _ = everything
    ends = torch.tensor([0.0, 1.0 - 2**-24]).repeat(5, 8)[:, :16, None].expand(-1, -1, 3)
    drawn = sample(policy, layout, prompts.tokens, prompts.mask, ends)
    assert bool((drawn.leaves >= 0).all())
    assert bool(torch.isfinite(drawn.logps).all())


def test_sampling_without_replacement_includes_items_as_theory_says(everything: tuple) -> None:
    policy, layout, prompts, exact = everything
    rounds, group = 1500, 3
    one = slice(0, 1)
    noise = torch.rand(rounds, 3, group, 7, generator=torch.Generator().manual_seed(1))
    gumbels = -(-noise.clamp(min=1e-20).log()).log()
    tokens, mask = prompts.tokens[one].expand(rounds, -1), prompts.mask[one].expand(rounds, -1)
    drawn = beam(policy, layout, tokens, mask, group, gumbels=gumbels)
    items = layout.decode(drawn.tokens.flatten(0, 1)).items.view(rounds, group)
    assert all(len(set(row)) == group for row in items.tolist())
    p = exact[0].exp().double()
    first = torch.bincount(items[:, 0], minlength=60) / rounds  # the first of the group is an ordinary sample
    assert bool(((first - p).abs() < 5 * (p * (1 - p) / rounds).sqrt() + 2e-3).all())
    second = (p[:, None] * p[None, :] / (1 - p[:, None])).fill_diagonal_(0).sum(0)  # draw without replacement
    seen = torch.bincount(items[:, 1], minlength=60) / rounds
    assert bool(((seen - second).abs() < 5 * (second * (1 - second) / rounds).sqrt() + 2e-3).all())
    assert_same(drawn.logps.sum(2), exact[0][items])
