from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrl.batches import Requests
from genrl.errors import DataError
from genrl.layouts.base import ThinkingLayout
from genrl.layouts.blocked import BlockedLayout
from genrl.policy.branches import CachedRows, Rows, SharingRows
from genrl.policy.decode import invert
from genrl.policy.model import Policy
from genrl.policy.writing import Written, sample_thinking, write
from tests.helpers import assert_same
from tests.models import make_layout, make_policy, make_prompts, make_thinking

OPTIONS = {"budget": 5, "minimum": 1, "total": 12}


@pytest.fixture(scope="module")
def policy() -> Policy:
    """One that ends its blocks at many lengths."""
    policy = make_policy(thinking=True)
    head = policy.base.get_output_embeddings()
    assert policy.words is not None
    head.bias = nn.Parameter(torch.zeros(head.out_features).index_fill(0, torch.tensor(policy.words.closing), 3.0))
    return policy


def uniforms_for(rows: int, layout: ThinkingLayout, seed: int = 0) -> Tensor:
    return torch.rand(rows, layout.length, generator=torch.Generator().manual_seed(seed))


def draw(policy: Policy, layout: ThinkingLayout, share: int = 4, way: str = "expand", **options: Any) -> Written:
    """What `share` rows behind each of the five prompts write."""
    prompts = make_prompts(policy)
    policy.branching = way
    rows = len(prompts) * share
    written = write(
        policy, layout, prompts.tokens, prompts.mask, layout.start(rows), uniforms_for(rows, layout), **options
    )
    policy.branching = "auto"
    return written


def slowly(
    policy: Policy,
    layout: ThinkingLayout,
    prompt: Tensor,
    uniforms: Tensor | None,
    warmth: tuple[float, float],
    normalize: str,
) -> list[tuple[int, float, float, int]]:
    """Token, log-probability, entropy and number of legal tokens, each from a forward pass of its own."""
    state, written = layout.start(1), []
    while not bool(layout.finished(state)):
        site = int(layout.sites(state))
        if site == layout.fixed:
            token = int(layout.forced(state))
            written.append((token, 0.0, 0.0, 0))
        else:
            logits = policy.model(prompt[None]).logits[0, -1].float() / warmth[int(site >= layout.num_steps)]
            legal = layout.legal(site, state)
            ids = legal.first + legal.mask[0].nonzero()[:, 0]
            chances = logits[ids].softmax(0)
            place = (
                chances.argmax() if uniforms is None else invert(chances[None], uniforms[len(written)].view(1, 1))[0, 0]
            )
            token = int(ids[place])
            total = logits.logsumexp(0) if normalize == "vocab" else logits[ids].logsumexp(0)
            entropy = -(chances * chances.log()).sum()
            written.append((token, float(logits[token] - total), float(entropy), len(ids)))
        prompt = torch.cat([prompt, torch.tensor([token])])
        state = layout.advance(site, state, torch.tensor([token]))
    return written


@pytest.mark.parametrize(
    ("order", "on_budget", "normalize", "greedy"),
    [
        ("tail", "close", "legal", False),
        ("tail", "fail", "vocab", False),
        ("interleaved", "close", "vocab", False),
        ("interleaved", "fail", "legal", False),
        ("interleaved", "close", "legal", True),
    ],
)
@torch.no_grad()
def test_every_token_is_what_a_plain_forward_pass_says(
    policy: Policy, order: str, on_budget: str, normalize: str, greedy: bool
) -> None:
    layout = make_thinking(policy, order=order, on_budget=on_budget, **OPTIONS)
    prompts, warmth = make_prompts(policy), (0.7, 1.3)
    uniforms = None if greedy else uniforms_for(5, layout)
    written = write(
        policy,
        layout,
        prompts.tokens,
        prompts.mask,
        layout.start(5),
        uniforms,
        temperature=warmth[0],
        thinking_temperature=warmth[1],
        normalize=normalize,
    )
    for row in range(5):
        noise = None if uniforms is None else uniforms[row]
        wanted = slowly(policy, layout, prompts.tokens[row][prompts.mask[row]], noise, warmth, normalize)
        length = len(wanted)
        assert (int(written.lengths[row]), int(written.mask[row].sum())) == (length, length)
        tokens, logps, entropy, choices = zip(*wanted, strict=True)
        assert written.tokens[row, :length].tolist() == list(tokens)
        assert written.choices[row, :length].tolist() == list(choices)
        assert_same(written.logps[row, :length], list(logps), 1e-5)
        assert_same(written.entropy[row, :length], list(entropy), 1e-5)
        assert bool((written.support[row, :length] >= 0).all())
        assert written.support[row, length:].eq(-1).all()
        assert not written.tokens[row, length:].any()
    assert bool(layout.finished(written.states).all())
    assert written.tokens.shape[1] == int(written.lengths.max())


@pytest.mark.parametrize("kind", [SharingRows, CachedRows])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_rows_with_a_cache_write_what_rows_without_one_write(
    policy: Policy, order: str, kind: type[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_thinking(policy, order=order, **OPTIONS)
    plain = draw(policy, layout, way="naive")
    monkeypatch.setattr("genrl.policy.writing.grow_rows", kind)  # prompts are left-padded already
    cached = draw(policy, layout)
    for name in ("tokens", "support", "choices", "states", "lengths"):
        assert getattr(cached, name).equal(getattr(plain, name)), name
    assert_same(cached.logps, plain.logps)
    assert_same(cached.entropy, plain.entropy)
    assert len(set(cached.lengths.tolist())) > 1


def test_a_row_writes_the_same_whatever_the_batch_it_is_in(policy: Policy) -> None:
    layout = make_thinking(policy, **OPTIONS)
    prompts = make_prompts(policy)
    uniforms = uniforms_for(20, layout).view(5, 4, -1)
    together = sample_thinking(policy, layout, prompts.tokens, prompts.mask, uniforms)
    for one in range(5):
        rows = slice(one, one + 1)
        alone = sample_thinking(policy, layout, prompts.tokens[rows], prompts.mask[rows], uniforms[rows])
        length = alone.tokens.shape[2]
        assert alone.tokens.equal(together.tokens[rows, :, :length])
        assert not together.tokens[rows, :, length:].any()
        assert alone.leaves.equal(together.leaves[rows])
        assert_same(alone.logps, together.logps[rows, :, :length])
        assert_same(alone.scores, together.scores[rows])


@pytest.mark.parametrize("way", ["expand", "naive"])
def test_rows_that_end_leave_the_batch(policy: Policy, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_thinking(policy, minimum=0, budget=6)
    sizes: list[int] = []
    hidden = type(policy).hidden

    def counted(self: Policy, tokens: Tensor, *rest: Any, **options: Any) -> Tensor:
        sizes.append(len(tokens))
        return hidden(self, tokens, *rest, **options)

    monkeypatch.setattr(type(policy), "hidden", counted)
    written = draw(policy, layout, share=8, way=way)
    prefilled, computed = sizes[-written.tokens.shape[1]], sizes[1 - written.tokens.shape[1] :]
    live = [int((written.lengths > position).sum()) for position in range(1, written.tokens.shape[1])]
    assert prefilled == 5
    assert live[-1] < live[0] / 2
    if way == "naive":
        assert computed == live
    else:
        assert all(rows <= batch and rows > batch * 7 // 8 for rows, batch in zip(live, computed, strict=True))


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_writing_goes_on_in_the_middle_of_completions(policy: Policy, order: str) -> None:
    layout = make_thinking(policy, order=order, **OPTIONS)
    prompts = make_prompts(policy)
    whole = draw(policy, layout, share=1)
    cut = int(whole.lengths.min()) - 2
    start = torch.nn.functional.pad(whole.tokens[:, :cut], (2, 0))  # padding in the middle of a row
    begun = torch.cat([torch.zeros(5, 2), torch.ones(5, cut)], dim=1).bool()
    rest = write(
        policy,
        layout,
        torch.cat([prompts.tokens, start], dim=1),
        torch.cat([prompts.mask, begun], dim=1),
        whole.support[:, cut],
        uniforms_for(5, layout)[:, cut:],
    )
    assert rest.tokens.equal(whole.tokens[:, cut:])
    assert rest.support.equal(whole.support[:, cut:])
    assert rest.states.equal(whole.states)
    assert_same(rest.logps, whole.logps[:, cut:])


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_writing_stops_where_it_is_told_to(policy: Policy, order: str) -> None:
    layout = make_thinking(policy, order=order, **OPTIONS)
    whole, thought = draw(policy, layout, share=2), draw(policy, layout, share=2, until=layout.thought)
    for row in range(10):
        sids = layout.item_mask(whole.support)[row].nonzero()[:, 0]
        length = int(sids[0])
        assert int(thought.lengths[row]) == length
        assert thought.tokens[row, :length].equal(whole.tokens[row, :length])
        assert int(thought.states[row]) == int(whole.support[row, length])


def test_rows_that_have_ended_before_the_start_write_nothing(policy: Policy) -> None:
    layout = make_thinking(policy, **OPTIONS)
    prompts = make_prompts(policy)
    states = layout.start(5)
    states[[1, 4]] = draw(policy, layout, share=1).states[[1, 4]]
    written = write(policy, layout, prompts.tokens, prompts.mask, states, uniforms_for(5, layout))
    others = draw(policy, layout, share=1)
    assert written.lengths.tolist() == others.lengths.index_fill(0, torch.tensor([1, 4]), 0).tolist()
    for row in (0, 2, 3):
        length = int(written.lengths[row])
        assert written.tokens[row, :length].equal(others.tokens[row, :length])

    nothing = write(policy, layout, prompts.tokens, prompts.mask, others.states)
    assert nothing.tokens.shape == (5, 0)
    assert nothing.states.equal(others.states)


def test_the_temperature_of_words_is_their_own(policy: Policy) -> None:
    layout = make_thinking(policy, **OPTIONS)
    one, same, other = (
        draw(policy, layout, temperature=0.5, thinking_temperature=warmth) for warmth in (None, 0.5, 2.0)
    )
    assert one.tokens.equal(same.tokens)
    assert one.tokens[:, :2].ne(other.tokens[:, :2]).any()


def test_each_prompt_gets_items_of_its_own_filter(policy: Policy) -> None:
    layout = make_thinking(policy, **OPTIONS)
    allow = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:10].view(5, 2)
    prompts: Requests = make_prompts(policy)
    filtered: BlockedLayout = layout.filtered(allow=allow)
    uniforms = uniforms_for(30, layout).view(5, 6, -1)
    drawn = sample_thinking(policy, filtered, prompts.tokens, prompts.mask, uniforms)
    items = filtered.decode(drawn.tokens.flatten(0, 1)).items.view(5, 6)
    assert bool((items[:, :, None] == allow[:, None]).any(2).all())


def test_tokens_of_another_tokenizer_are_refused(policy: Policy) -> None:
    layout = make_thinking(policy)
    other = make_policy()
    assert make_layout(other).first_ids != layout.first_ids
    prompts = make_prompts(policy)
    with pytest.raises(DataError, match="another tokenizer"):
        write(other, layout, prompts.tokens, prompts.mask, layout.start(5))
