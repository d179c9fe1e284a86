from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from genrl.compare.studies import requests as module
from genrl.compare.studies.requests import milliseconds, requests, widest_beam, work
from genrl.recommenders.searching import rankings
from genrl.runs.session import Session
from tests.helpers import assert_same
from tests.runs import changed, small_config

LAYOUTS = ("sid", "blocked")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    folder = tmp_path_factory.mktemp("sessions")
    options = {"sid": ("layout=sid",), "blocked": ("layout=blocked", "layout.budget=4", "data.max_history=5")}
    return {name: Session.build(small_config(folder, *more)) for name, more in options.items()}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNTED", 2)


def counted_by_hand(session: Session, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Tokens and multiply-adds of the requests, from the shapes that Python hands to every product."""
    linear, attention = functional.linear, functional.scaled_dot_product_attention
    products, tokens = [], []

    def count_linear(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        products.append(value.numel() * weight.shape[0])
        return linear(value, weight, bias)

    def count_attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
        products.append(query.numel() * key.shape[2] + query.shape[:3].numel() * key.shape[2] * value.shape[3])
        return attention(query, key, value, *others, **options)

    matmul, forward = torch.Tensor.__matmul__, session.policy.forward

    def count_matmul(one: Tensor, other: Tensor) -> Tensor:
        found = matmul(one, other)
        products.append(found.numel() * one.shape[-1])
        return found

    def count_tokens(given: Tensor, *others: Any, **options: Any) -> Tensor:
        tokens.append(given.numel())
        return forward(given, *others, **options)

    batches = requests(session, module.COUNTED)
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(functional, "linear", count_linear)
        patched.setattr(torch.Tensor, "__matmul__", count_matmul)
        patched.setattr(functional, "scaled_dot_product_attention", count_attention)
        patched.setattr(session.policy, "forward", count_tokens)
        for prompt in batches:
            rankings(session.policy, session.layout, prompt, replace(session.config.evaluate, exact=False))
    return sum(tokens) / len(batches), sum(products) / len(batches)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_work_of_a_request_is_that_of_all_products_it_makes(
    sessions: dict[str, Session], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions[layout]
    found = work(session)
    tokens, products = counted_by_hand(session, monkeypatch)
    assert_same(found.tokens, tokens, 0)
    assert_same(found.multiply_adds, products, 0)


def test_the_widest_beam_is_the_last_that_the_work_allows(
    sessions: dict[str, Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNTED", 1)
    session = changed(sessions["sid"], tmp_path, "evaluate.beam=10")
    allowed = work(session, 14).multiply_adds
    width = widest_beam(session, allowed)
    assert width >= 14
    assert work(session, width).multiply_adds <= allowed < work(session, width + 1).multiply_adds
    assert widest_beam(session, 0.0) == 10  # never less than configured
    assert widest_beam(session, float("inf")) == session.layout.completions


def test_requests_are_single_rows_spread_over_the_test_part(sessions: dict[str, Session]) -> None:
    session = sessions["sid"]
    rows = session.batches("test").positions
    found = requests(session, 3)
    assert [len(batch) for batch in found] == [1, 1, 1]
    wanted = session.maker.at(rows[[0, (len(rows) - 1) // 2, -1]]).targets.items
    assert_same(torch.cat([batch.targets.items for batch in found]), wanted)
    assert len(requests(session, 10**6)) == len(rows)


def test_policies_take_turns_and_the_first_request_warms_up(
    sessions: dict[str, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, order = [0.0], []

    def request(session: Session, prompt: Any, config: Any) -> None:
        order.append(session)
        slow = session is sessions["blocked"]
        now[0] += 100 if len(order) <= 2 else (0.003 if slow else 0.002)

    monkeypatch.setattr(module, "_request", request)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = milliseconds(sessions)
    assert order == [sessions["sid"], sessions["blocked"]] * (module.TIMED + 1)
    assert_same([found["sid"], found["blocked"]], [2.0, 3.0], 1e-6)
