from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrl.batches import State
from genrl.layouts.base import Layout
from genrl.policy.distribution import Sampling, invert
from genrl.policy.model import Policy
from genrl.policy.write import Written, go_on, write
from tests.helpers import assert_same
from tests.models import make_policy, make_prompts, make_thinking

OPTIONS = {"budget": 5, "minimum": 1, "total": 12}


@pytest.fixture(scope="module")
def policy() -> Policy:
    """One that ends its blocks at many lengths."""
    policy = make_policy(thinking=True)
    head = policy.base.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(head.out_features).index_fill(0, torch.tensor(policy.words.closing), 3.0))
    return policy


def uniforms_for(rows: int, layout: Layout, seed: int = 0) -> Tensor:
    return torch.rand(rows, layout.length, generator=torch.Generator().manual_seed(seed))


def draw(
    policy: Policy,
    layout: Layout,
    share: int = 4,
    way: str = "expand",
    sampling: Sampling = Sampling(),  # noqa: B008
    **options: Any,
) -> Written:
    """What `share` rows behind each of the five prompts write."""
    prompts = make_prompts(policy)
    policy.branching = way
    noise = uniforms_for(len(prompts) * share, layout)
    start = layout.start(len(prompts), share)
    written = go_on(policy, layout, prompts, prompts, start, sampling, noise, **options)
    policy.branching = "auto"
    return written


def same(one: State, other: State) -> bool:
    """Whether states stand at the same places; what ended states hold besides their site is of no use."""
    live = one.site >= 0
    equal = all(
        getattr(one, name)[live].equal(getattr(other, name)[live]) for name in ("node", "place", "total", "used")
    )
    return equal and (other.site >= 0).equal(live)


def slowly(
    policy: Policy,
    layout: Layout,
    prompt: Tensor,
    uniforms: Tensor | None,
    warmth: tuple[float, float],
    normalize: str,
) -> list[tuple[int, float, float, int]]:
    """Token, log-probability, entropy and number of legal tokens, each from a forward pass of its own."""
    state, written = layout.start(1), []
    while (site := int(state.site)) >= 0:
        legal = layout.legal(site, state)
        if legal.form:
            token = int(legal.token(torch.zeros(1, 1, dtype=torch.int64)))
            written.append((token, 0.0, 0.0, 0))
        else:
            logits = policy.model(prompt[None]).logits[0, -1].float() / warmth[int(layout.kinds[site] == "word")]
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
        state = layout.advance(state, torch.tensor([token]))
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
def test_every_token_is_what_a_plain_forward_pass_says(policy, order, on_budget, normalize, greedy):
    layout = make_thinking(policy, order=order, on_budget=on_budget, **OPTIONS)
    prompts, warmth = make_prompts(policy), (0.7, 1.3)
    uniforms = None if greedy else uniforms_for(5, layout)
    sampling = Sampling(*warmth, normalize)
    start = layout.start(5)
    written = go_on(policy, layout, prompts, prompts, start, sampling, uniforms)
    for row in range(5):
        noise = None if uniforms is None else uniforms[row]
        wanted = slowly(policy, layout, prompts.tokens[row][prompts.mask[row]], noise, warmth, normalize)
        length = len(wanted)
        assert int(written.mask[row].sum()) == length
        tokens, logps, entropy, choices = zip(*wanted, strict=True)
        assert written.tokens[row, :length].tolist() == list(tokens)
        assert written.choices[row, :length].tolist() == list(choices)
        assert_same(written.logps[row, :length], list(logps), 1e-5)
        assert_same(written.entropy[row, :length], list(entropy), 1e-5)
        assert bool((written.states.site[row, :length] >= 0).all())
        assert written.states.site[row, length:].lt(0).all()
        assert not written.tokens[row, length:].any()
    assert bool((written.state.site < 0).all())
    assert written.tokens.shape[1] == int(written.mask.sum(1).max())


@pytest.mark.parametrize("kind", ["share", "copy"])
@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_rows_with_a_cache_write_what_rows_without_one_write(policy, order, kind, monkeypatch):
    layout = make_thinking(policy, order=order, **OPTIONS)
    plain = draw(policy, layout, way="naive")
    if kind == "copy":
        monkeypatch.setitem(policy.refused_ways, policy.device, {"share": "left out"})
    cached = draw(policy, layout)
    for name in ("tokens", "choices", "mask"):
        assert getattr(cached, name).equal(getattr(plain, name)), name
    assert same(cached.states, plain.states)
    assert_same(cached.logps, plain.logps)
    assert_same(cached.entropy, plain.entropy)
    assert len(set(cached.mask.sum(1).tolist())) > 1


def test_a_row_writes_the_same_whatever_the_batch_it_is_in(policy):
    layout = make_thinking(policy, **OPTIONS)
    prompts = make_prompts(policy)
    uniforms = uniforms_for(20, layout).view(5, 4, -1)
    together = write(policy, layout, prompts, 4, noise=uniforms)
    for one in range(5):
        rows = slice(one, one + 1)
        alone, other = write(policy, layout, prompts.rows(rows), 4, noise=uniforms[rows]), together.groups(rows)
        length = alone.tokens.shape[1]
        assert alone.tokens.equal(other.tokens[:, :length])
        assert not other.tokens[:, length:].any()
        assert alone.items.equal(other.items)
        assert_same(alone.logps, other.logps[:, :length])


@pytest.mark.parametrize("way", ["expand", "naive"])
def test_rows_that_end_leave_the_batch(policy, way, monkeypatch):
    layout = make_thinking(policy, minimum=0, budget=6)
    sizes: list[int] = []
    forward = type(policy).forward

    def counted(self: Policy, tokens: Tensor, *rest: Any, **options: Any) -> Tensor:
        sizes.append(len(tokens))
        return forward(self, tokens, *rest, **options)

    monkeypatch.setattr(type(policy), "forward", counted)
    written = draw(policy, layout, share=8, way=way)
    prefilled, computed = sizes[-written.tokens.shape[1]], sizes[1 - written.tokens.shape[1] :]
    live = [int((written.mask.sum(1) > position).sum()) for position in range(1, written.tokens.shape[1])]
    assert prefilled == 5
    assert live[-1] < live[0] / 2
    if way == "naive":
        assert computed == live
    else:
        assert all(rows <= batch and rows > batch * 7 // 8 for rows, batch in zip(live, computed, strict=True))


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_writing_goes_on_in_the_middle_of_completions(policy, order):
    layout = make_thinking(policy, order=order, **OPTIONS)
    prompts = make_prompts(policy)
    whole = draw(policy, layout, share=1)
    cut = int(whole.mask.sum(1).min()) - 2
    start = torch.nn.functional.pad(whole.tokens[:, :cut], (2, 0))  # padding in the middle of a row
    begun = torch.cat([torch.zeros(5, 2), torch.ones(5, cut)], dim=1).bool()
    rest = go_on(
        policy,
        layout,
        prompts,
        replace(
            prompts,
            tokens=torch.cat([prompts.tokens, start], dim=1),
            mask=torch.cat([prompts.mask, begun], dim=1),
        ),
        whole.states.each(lambda value: value[:, cut]),
        Sampling(),
        uniforms_for(5, layout)[:, cut:],
    )
    assert rest.tokens.equal(whole.tokens[:, cut:])
    assert same(rest.states, whole.states.each(lambda value: value[:, cut:]))
    assert_same(rest.logps, whole.logps[:, cut:])


@pytest.mark.parametrize("order", ["tail", "interleaved"])
def test_writing_stops_where_it_is_told_to(policy, order):
    layout = make_thinking(policy, order=order, **OPTIONS)
    whole = draw(policy, layout, share=2)
    thought = draw(policy, layout, share=2, until=lambda site: site < layout.steps)
    for row in range(10):
        site = whole.states.site[row]
        length = int(((site >= 0) & (site < layout.steps)).nonzero()[0])
        assert int(thought.mask[row].sum()) == length
        assert thought.tokens[row, :length].equal(whole.tokens[row, :length])
        assert int(thought.state.site[row]) == int(site[length])


def test_rows_that_have_ended_before_the_start_write_nothing(policy):
    layout = make_thinking(policy, **OPTIONS)
    prompts = make_prompts(policy)
    others = draw(policy, layout, share=1)
    ended = torch.tensor([1, 4])
    state = layout.start(5).put(ended, others.state.rows(ended))
    written = go_on(policy, layout, prompts, prompts, state, Sampling(), uniforms_for(5, layout))
    lengths = written.mask.sum(1)
    assert lengths.tolist() == others.mask.sum(1).index_fill(0, ended, 0).tolist()
    for row in (0, 2, 3):
        length = int(lengths[row])
        assert written.tokens[row, :length].equal(others.tokens[row, :length])

    nothing = go_on(policy, layout, prompts, prompts, others.state, Sampling())
    assert nothing.tokens.shape == (5, 0)
    assert nothing.state.site.equal(others.state.site)


def test_the_temperature_of_words_is_their_own(policy):
    layout = make_thinking(policy, **OPTIONS)
    one, equal, other = (draw(policy, layout, sampling=Sampling(0.5, warmth)) for warmth in (None, 0.5, 2.0))
    assert one.tokens.equal(equal.tokens)
    assert one.tokens[:, :2].ne(other.tokens[:, :2]).any()


def test_each_prompt_gets_items_of_its_own_filter(policy):
    layout = make_thinking(policy, **OPTIONS)
    pool = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:10].view(5, 2)
    prompts = replace(make_prompts(policy), pool=pool)
    drawn = write(policy, layout, prompts, 6, noise=uniforms_for(30, layout).view(5, 6, -1))
    assert bool((drawn.items.view(5, 6, 1) == pool[:, None]).any(2).all())
