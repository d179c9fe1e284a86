from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl.batches import Ranking, Requests, Targets
from genrl.catalog.sequences import Role
from genrl.config.schema import EvaluateConfig, PoolConfig
from genrl.errors import DataError
from genrl.layouts.blocked import BlockedLayout
from genrl.metrics.functional import exclude_history
from genrl.policy.information import greedy_information
from genrl.policy.search import search
from genrl.prompts.template import EvaluationBatches
from genrl.recommenders.base import deniable
from genrl.recommenders.searching import bare, rankings, thinking_noise
from genrl.runs.evaluate import (
    Evaluation,
    check_reached,
    evaluate,
    evaluated_rows,
    ranking_metrics,
)
from genrl.runs.session import Session
from tests.helpers import assert_same

CONFIG = EvaluateConfig(beam=60, k=[5, 10], exact=False)


def run(session: Session, config: EvaluateConfig = CONFIG, limit: int | None = None) -> Evaluation:
    positions = evaluated_rows(session.dataset, replace(config, valid_users=limit), "valid")
    rows = EvaluationBatches(session.maker, positions, config.batch)
    return evaluate(session.recommender, rows, config, "valid")


@pytest.mark.filterwarnings("ignore:out of memory in the ranking")
def test_less_memory_gives_the_same_evaluation(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    config, sizes, rank = replace(CONFIG, batch=16, pass_at=[2]), [], session.recommender.rankings
    wanted = run(session, config, 40)

    def little(requests: Requests, *arguments: Any) -> dict[str, Ranking]:
        sizes.append(len(requests))
        if len(requests) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rank(requests, *arguments)

    monkeypatch.setattr(session.recommender, "rankings", little)
    found = run(session, config, 40)
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[3:]) == 4
    for kind in ("raw", "excluded"):
        assert getattr(found, kind) == pytest.approx(getattr(wanted, kind), abs=1e-6, nan_ok=True)
        assert torch.equal(found.ranks[kind], wanted.ranks[kind])


def test_tied_targets_are_those_with_the_time_of_the_interaction_before_them(session: Session) -> None:
    sequences = session.dataset.sequences
    times = sequences.times // 30
    daily = replace(session, dataset=replace(session.dataset, sequences=replace(sequences, times=times)))
    found = run(daily, replace(CONFIG, ties=True))
    rows = sequences.rows(Role.VALID)
    tied = times[rows] == times[rows - 1]
    for kind, values in (("raw", found.raw), ("excluded", found.excluded)):
        hits = (found.ranks[kind] < 10).double()
        assert (values["tied_rows"], values["untied_rows"]) == (int(tied.sum()), int((~tied).sum()))
        assert_same(values["tied_recall@10"], float(hits[tied].mean()))
        assert_same(values["untied_recall@10"], float(hits[~tied].mean()))


@pytest.fixture
def exhaustive(session: Session) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """For each validation row all items, best first; the items seen before; the target: one plain forward per item."""
    layout, policy, sequences = session.layout, session.policy, session.dataset.sequences
    codes = layout.compose(torch.arange(60)[:, None])
    nodes = layout.start(60)
    legal = []
    for position in range(layout.length):
        legal.append(layout.legal(position, nodes))
        nodes = layout.advance(nodes, codes[:, position], position)
    positions = session.dataset.sequences.rows(Role.VALID)[:20]
    rankings, histories = [], []
    for position in positions.tolist():
        user = int(sequences.users(torch.tensor([position])))
        seen = sequences.items[int(sequences.offsets[user]) : position]
        prompt = torch.cat([torch.tensor([policy.start_id]), layout.catalogue.render(seen).flatten()])
        with torch.no_grad():
            logits = policy.model(torch.cat([prompt.expand(60, -1), codes], dim=1)).logits.float()
        total = torch.zeros(60)
        for place, allowed in enumerate(legal):
            now = logits[:, len(prompt) - 1 + place]
            inside = now[:, allowed.first : allowed.first + allowed.mask.shape[1]].masked_fill(~allowed.mask, -1e30)
            total += now.gather(1, codes[:, place : place + 1])[:, 0] - inside.logsumexp(1)
        rankings.append(total.argsort(descending=True).tolist())
        histories.append(seen.tolist())
    return rankings, histories, sequences.items[positions]


def test_a_full_beam_equals_scoring_every_item(
    session: Session, exhaustive: tuple[list[list[int]], list[list[int]], Tensor]
) -> None:
    wanted_rankings, histories, targets = exhaustive
    rows = EvaluationBatches(session.maker, session.dataset.sequences.rows(Role.VALID)[:20], 7)
    found = evaluate(session.recommender, rows, CONFIG, "valid")
    raw = [ranking.index(target) for ranking, target in zip(wanted_rankings, targets.tolist(), strict=True)]
    left = [
        [item for item in ranking if item not in seen] for ranking, seen in zip(wanted_rankings, histories, strict=True)
    ]
    excluded = [items.index(t) if t in items else 60 for items, t in zip(left, targets.tolist(), strict=True)]
    assert found.ranks["raw"].tolist() == raw
    assert found.ranks["excluded"].tolist() == excluded
    assert_same(found.raw["recall@10"], sum(rank < 10 for rank in raw) / 20, 1e-9)
    assert_same(found.excluded["recall@5"], sum(rank < 5 for rank in excluded) / 20, 1e-9)
    gains = [1 / torch.tensor(rank + 2.0).log2() if rank < 10 else torch.tensor(0.0) for rank in raw]
    assert_same(found.raw["ndcg@10"], float(torch.stack(gains).mean()), 1e-6)
    shown = {item for ranking in wanted_rankings for item in ranking[:10]}
    assert_same(found.raw["coverage@10"], len(shown) / 60, 1e-9)
    seen = [len(set(r[:10]) & set(h)) / 10 for r, h in zip(wanted_rankings, histories, strict=True)]
    assert_same(found.raw["history_share@10"], sum(seen) / 20, 1e-9)


def test_metrics_do_not_depend_on_the_batch_size(session: Session) -> None:
    one, two = (run(session, replace(CONFIG, beam=20, batch=batch)) for batch in (7, 128))
    assert one.raw == pytest.approx(two.raw, nan_ok=True)
    assert one.excluded == pytest.approx(two.excluded, nan_ok=True)
    assert {kind: ranks.tolist() for kind, ranks in one.ranks.items()} == {
        kind: ranks.tolist() for kind, ranks in two.ranks.items()
    }


def test_ranks_stand_in_the_order_of_the_rows_and_misses_behind_all(session: Session) -> None:
    whole = run(session, replace(CONFIG, beam=10, batch=16))
    assert whole.ranks["raw"].numel() == session.dataset.sequences.rows(Role.VALID).numel()
    assert int(whole.ranks["raw"].min()) >= 0
    assert int(whole.ranks["raw"].max()) == 10
    one = session.dataset.sequences.rows(Role.VALID)[33:34]
    batches = EvaluationBatches(session.maker, one, 4)
    alone = evaluate(session.recommender, batches, replace(CONFIG, beam=10), "one")
    assert int(alone.ranks["raw"]) == int(whole.ranks["raw"][33])


def test_two_ranks_together_see_what_one_sees(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, beam=20, batch=16)
    positions = session.dataset.sequences.rows(Role.VALID)
    parts = []
    for rank in range(2):
        rows = EvaluationBatches(session.maker, positions, config.batch, rank, 2)
        parts.append(evaluate(session.recommender, rows, config, "part"))
    whole = run(session, config)
    for kind in ("raw", "excluded"):
        joined = torch.maximum(parts[0].ranks[kind], parts[1].ranks[kind])
        assert joined.tolist() == whole.ranks[kind].tolist()
        assert bool((torch.minimum(parts[0].ranks[kind], parts[1].ranks[kind]) == -1).all())


def test_a_hit_may_be_any_item_of_the_sid(session: Session) -> None:
    codes = session.table.codes
    shared = codes.clone()
    shared[1] = shared[0]
    catalog = session.dataset.catalog
    by_item, by_sid = (ranking_metrics(replace(CONFIG, level=level), catalog, shared) for level in ("item", "sid"))  # type: ignore[arg-type]
    batch = session.maker.at(session.dataset.sequences.rows(Role.VALID)[:1])
    targets = replace(batch.targets, items=torch.tensor([[1]]))
    ranking = Ranking(torch.tensor([[0, *range(2, 11)]]), -torch.arange(10.0)[None])
    for metrics in (by_item, by_sid):
        metrics.update(ranking, targets)
    assert float(by_item.compute()["recall@5"]) == 0.0
    assert float(by_sid.compute()["recall@5"]) == 1.0


def test_the_policy_is_left_in_evaluation_mode(session: Session) -> None:
    session.policy.train()
    run(session, replace(CONFIG, beam=10), limit=5)
    assert not session.policy.training


def test_an_exact_evaluation_finds_the_top_that_scoring_every_item_gives(
    session: Session, exhaustive: tuple[list[list[int]], list[list[int]], Tensor]
) -> None:
    wanted_rankings, histories, targets = exhaustive
    rows = EvaluationBatches(session.maker, session.dataset.sequences.rows(Role.VALID)[:20], 7)
    narrow = replace(CONFIG, beam=10, k=[5, 10])

    def run_with(config: EvaluateConfig) -> Evaluation:
        return evaluate(session.recommender, rows, config, "valid")

    beams, exact = run_with(narrow), run_with(replace(narrow, exact=True))
    assert beams.raw["certified@10"] < 1
    assert exact.raw["certified@10"] == exact.excluded["certified@10"] == 1
    left = [
        [item for item in ranking if item not in seen] for ranking, seen in zip(wanted_rankings, histories, strict=True)
    ]
    for kind, wanted in (("raw", wanted_rankings), ("excluded", left)):
        places = [r.index(t) if t in r else 60 for r, t in zip(wanted, targets.tolist(), strict=True)]
        assert exact.ranks[kind].tolist() == [min(place, 10) for place in places]


def test_an_exact_evaluation_stands_users_who_have_seen_everything(session: Session) -> None:
    prompts = session.maker.at(session.dataset.sequences.rows(Role.VALID)[:3])
    history = torch.full((3, 70), -1)
    history[1, 5:65] = torch.arange(60)
    history[2, 3] = 7
    found = rankings(
        session.policy, session.layout, replace(prompts, history=history), replace(CONFIG, beam=10, exact=True)
    )
    assert (found["excluded"].items >= 0).sum(1).tolist() == [10, 0, 10]
    assert 7 not in found["excluded"].items[2].tolist()


def test_some_rows_are_the_same_ones_for_every_run(session: Session) -> None:
    def rows(limit: int | None) -> Tensor:
        return evaluated_rows(session.dataset, replace(CONFIG, valid_users=limit, test_users=3), "valid")

    every = session.dataset.sequences.rows(Role.VALID)
    some = rows(30)
    assert some.numel() == 30
    assert some.tolist() == sorted(set(some.tolist()) & set(every.tolist()))
    torch.manual_seed(5)
    assert torch.equal(rows(30), some)
    assert torch.equal(rows(80), every)
    assert torch.equal(rows(None), every)
    assert some.tolist() != every[:30].tolist()
    assert evaluated_rows(session.dataset, replace(CONFIG, test_users=3), "test").numel() == 3


def test_nothing_is_denied_to_users_who_have_seen_everything() -> None:
    history = torch.tensor([[-1, 0, 1], [0, 1, 1], [2, 0, 1]])
    assert deniable(bare(history), 3).tolist() == [[-1, 0, 1], [0, 1, 1], [-1, -1, -1]]


def test_nothing_is_denied_to_users_who_know_their_candidates() -> None:
    history = torch.tensor([[-1, 0, 1], [0, 1, 1], [2, 0, 1]])
    pool = torch.tensor([[0, 1, -1], [0, 2, 3], [3, 4, 5]])
    assert deniable(bare(history, pool=pool), 9).tolist() == [[-1, -1, -1], [0, 1, 1], [2, 0, 1]]
    assert deniable(bare(history, pool=pool), 9, 3).tolist() == [[-1, -1, -1], [-1, -1, -1], [2, 0, 1]]


def test_noise_of_thinking_depends_on_the_prompt_alone(thinking: Session) -> None:
    config = replace(CONFIG, thinking_samples=2)
    prompts = thinking.maker.at(thinking.dataset.sequences.rows(Role.VALID)[:6])
    whole = thinking_noise(thinking.layout, prompts, config)
    assert whole is not None
    assert whole.shape == (6, 2, thinking.layout.length)
    one = prompts.rows(torch.tensor([3]))
    one = replace(one, tokens=one.tokens[:, one.mask[0]], mask=one.mask[:, one.mask[0]])  # without its padding
    alone = thinking_noise(thinking.layout, one, config)
    assert alone is not None
    assert torch.equal(alone[0], whole[3])
    assert len({row.flatten()[0].item() for row in whole}) == len({tuple(row) for row in prompts.tokens.tolist()})
    assert thinking_noise(thinking.layout, one, CONFIG) is None


@pytest.mark.parametrize("samples", [0, 2])
def test_metrics_behind_thinking_depend_neither_on_batches_nor_on_ranks(thinking: Session, samples: int) -> None:
    config = replace(CONFIG, beam=12, valid_users=12, thinking_samples=samples, batch=64)
    whole = run(thinking, config, limit=12)
    assert run(thinking, replace(config, batch=5), limit=12).ranks["raw"].tolist() == whole.ranks["raw"].tolist()
    positions = evaluated_rows(thinking.dataset, config, "valid")
    parts = []
    for rank in range(2):
        rows = EvaluationBatches(thinking.maker, positions, 7, rank, 2)
        parts.append(evaluate(thinking.recommender, rows, config, "part"))
    for kind in ("raw", "excluded"):
        joined = torch.maximum(parts[0].ranks[kind], parts[1].ranks[kind])
        assert joined.tolist() == whole.ranks[kind].tolist()
    assert whole.raw["format_failure"] == 0
    assert 0 <= whole.raw["certified@10"] <= 1


def test_raw_and_history_excluded_rankings_share_one_thinking(
    thinking: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genrl.recommenders import searching

    layout, prompts = thinking.layout, thinking.maker.at(thinking.dataset.sequences.rows(Role.VALID)[:4])
    assert isinstance(layout, BlockedLayout)
    count, think = [], searching.think
    monkeypatch.setattr(searching, "think", lambda *args, **options: count.append(1) or think(*args, **options))
    full, _ = search(thinking.policy, layout, prompts, 60)
    found = rankings(thinking.policy, layout, prompts, replace(CONFIG, beam=10, exact=True))
    assert found["raw"].items.tolist() == full.items[:, :10].tolist()
    unseen = exclude_history(full, prompts.history)
    assert found["excluded"].items.tolist() == unseen.items[:, :10].tolist()
    assert len(count) == 1


def test_failed_thinking_is_a_miss_that_is_counted(thinking: Session) -> None:
    layout = thinking.layout
    assert isinstance(layout, BlockedLayout)
    failing = BlockedLayout(replace(layout.config, on_budget="fail"), catalogue=layout.catalogue, words=layout.words)
    failing._closing[layout.words.closing] = False  # nothing but words is ever chosen
    found = run(replace(thinking, recommender=thinking.recommender.under(failing)), replace(CONFIG, beam=10), limit=6)
    assert found.raw["format_failure"] == found.excluded["format_failure"] == 1
    assert found.raw["recall@10"] == 0
    assert found.ranks["raw"].tolist() == [10] * 6


def test_only_layouts_with_thinking_can_fail_in_it(session: Session) -> None:
    assert "format_failure" not in run(session, replace(CONFIG, beam=10), limit=5).raw


def test_a_narrow_beam_filters_the_history_inside_the_search(session: Session) -> None:
    prompts = session.maker.at(session.dataset.sequences.rows(Role.VALID)[:8])
    first, _ = search(session.policy, session.layout, prompts, 12)
    prompts = replace(prompts, history=first.items[:, :9])  # nearly all that the beam finds has been seen
    config = replace(CONFIG, beam=12, k=[5])
    found = rankings(session.policy, session.layout, prompts, config)
    wanted, _ = search(session.policy, session.layout, replace(prompts, deny=prompts.history), 12)
    assert found["raw"].items.tolist() == first.items.tolist()
    assert found["excluded"].items.tolist() == wanted.items.tolist()
    alone = rankings(session.policy, session.layout, prompts, config, ("excluded",))
    assert list(alone) == ["excluded"]
    assert alone["excluded"].items.tolist() == wanted.items.tolist()


@pytest.mark.parametrize("beam", [1, 20, 60])
def test_exact_lists_of_users_with_long_histories_are_whole(session: Session, beam: int) -> None:
    prompts = session.maker.at(session.dataset.sequences.rows(Role.VALID)[:6])
    every, _ = search(session.policy, session.layout, prompts, 60)
    prompts = replace(prompts, history=every.items[:, :45].flip(1))  # the likeliest ones
    found = rankings(session.policy, session.layout, prompts, EvaluateConfig(beam=beam, k=[1, 12]))
    assert found["raw"].items.tolist() == every.items[:, :12].tolist()
    assert found["excluded"].items.tolist() == every.items[:, 45:57].tolist()
    assert all(bool(shown.certified(12).all()) for shown in found.values())


def test_lists_are_short_where_items_are_left_that_they_lack(session: Session) -> None:
    whole = run(session, replace(CONFIG, exact=True, k=[60]), limit=20)
    assert whole.raw["short@60"] == whole.excluded["short@60"] == 0  # nothing is left of what the user has not seen
    codes = session.table.codes

    class Narrow(type(session.recommender)):  # type: ignore[misc]
        """Loses the last item of each list, as a beam may."""

        def rankings(self, *arguments: Any, **options: Any) -> dict[str, Ranking]:
            found = super().rankings(*arguments, **options)
            lost = torch.tensor([[1] * (len(codes) - 1) + [0]], dtype=torch.bool)
            return {kind: replace(shown, items=shown.items.where(lost, -1)) for kind, shown in found.items()}

    recommender = copy(session.recommender)
    recommender.__class__ = Narrow
    found = run(replace(session, recommender=recommender), replace(CONFIG, exact=True, k=[60]), limit=20)
    assert found.raw["short@60"] == 1
    assert found.excluded["short@60"] == 0  # every user has seen something


def test_a_list_of_all_that_is_left_is_certified_and_not_short_and_a_target_of_the_history_a_miss(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = session.dataset.sequences.rows(Role.VALID)[:4]
    every = torch.arange(60)
    history = torch.stack([every, every, every, every.roll(1)])
    history[1, 5:] = history[1, 4]  # five different items
    history[2, 55:] = history[2, 0]  # all but five, one of them twice
    wanted = torch.tensor([[3], [30], [57], [0]])
    asked = replace(session.maker.at(positions), history=history, targets=Targets(wanted))
    batches = EvaluationBatches(session.maker, positions, 4)
    monkeypatch.setattr(EvaluationBatches, "__iter__", lambda self: iter([asked.rows(self.rows[0])]))
    config = replace(CONFIG, beam=10, k=[10], exact=True)
    found = evaluate(session.recommender, batches, config, "valid")
    assert found.excluded["certified@10"] == found.raw["certified@10"] == 1
    assert found.excluded["short@10"] == found.raw["short@10"] == 0
    assert found.excluded["target_seen"] == found.raw["target_seen"] == 0.5  # of the first user and the last
    assert [found.ranks["excluded"][row].item() for row in (0, 3)] == [10, 10]
    assert found.ranks["excluded"][2].item() < 5


def test_the_same_weights_are_read_in_three_ways(thinking: Session) -> None:
    config = replace(CONFIG, exact=True, valid_users=12, readings=True, thinking_samples=2)
    found = run(thinking, config, limit=12)
    assert list(found.readings) == ["plain", "greedy", "marginal"]
    assert [way for way, read in found.readings.items() if "information" in read.raw] == ["greedy"]
    rows = thinking.maker.at(evaluated_rows(thinking.dataset, config, "valid"))
    told = greedy_information(thinking.policy, thinking.layout, rows)
    assert_same(found.readings["greedy"].raw["information"], float(told.mean()), 1e-4)
    assert found.readings["marginal"].excluded == pytest.approx(found.excluded, nan_ok=True)
    greedy = run(thinking, replace(config, readings=False, thinking_samples=0), limit=12)
    assert found.readings["greedy"].ranks["excluded"].tolist() == greedy.ranks["excluded"].tolist()
    plain = run(
        replace(thinking, recommender=thinking.learner.under(thinking.layout.plain)),
        replace(config, readings=False),
        limit=12,
    )
    assert found.readings["plain"].ranks["raw"].tolist() == plain.ranks["raw"].tolist()
    assert plain.readings == {}
    both = run(thinking, replace(config, readings=False, empty_thought=True), limit=12)
    assert both.raw["certified@10"] == 1
    assert both.ranks["raw"].tolist() != found.ranks["raw"].tolist()


def test_passes_follow_the_probability_of_the_target(session: Session) -> None:
    config = replace(CONFIG, k=[5], pass_at=[1, 64])
    found = run(session, config, limit=24)
    positions = evaluated_rows(session.dataset, replace(CONFIG, valid_users=24), "valid")
    prompts = session.maker.at(positions)
    every, _ = search(session.policy, session.layout, prompts, 60)
    chance = torch.zeros(24, 60).scatter(1, every.items, every.scores.exp())
    share = chance.gather(1, prompts.wanted.items)[:, 0].double()
    deviation = float((share * (1 - share) / 64).sum().sqrt() / 24)
    assert_same(found.raw["pass@1"], float(share.mean()), 4 * deviation)
    assert 0 <= found.excluded["pass@1"] <= found.excluded["pass@64"] <= 1
    once = 1 - (1 - share) ** 64
    assert_same(found.raw["pass@64"], float(once.mean()), 4 * float((once * (1 - once)).sum().sqrt() / 24))
    again = run(session, replace(config, batch=5), limit=24)
    assert again.excluded["pass@64"] == found.excluded["pass@64"]


def test_numbers_inside_pools_carry_their_size_and_their_ceiling(session: Session) -> None:
    options = PoolConfig(size=12, neighbours=4, popular=2, seen=True)
    inside = replace(session, config=replace(session.config, data=replace(session.config.data, pool=options)))
    found = run(inside)
    pools = inside.maker.pools.at(session.dataset.sequences.rows(Role.VALID))
    for kind, values in (("raw", found.raw), ("excluded", found.excluded)):
        assert values["pool_size"] == 12
        assert values["pool_ceiling"] == 1.0
        assert values[f"short@{max(CONFIG.k)}"] == 0.0
        assert int(found.ranks[kind].max()) <= 12
    assert found.raw["recall@10"] > run(session).raw["recall@10"]
    ranked = inside.recommender.rankings(next(iter(inside.batches("valid"))), CONFIG)["raw"].items
    rows = inside.batches("valid").rows[0]
    for row, items in zip(rows.tolist(), ranked.tolist(), strict=True):
        assert {item for item in items if item >= 0} <= set(pools.items[row].tolist())


def test_pools_that_all_lack_their_target_are_refused(session: Session) -> None:
    options = PoolConfig(size=2, target=False, neighbours=0, popular=2)
    inside = replace(session, config=replace(session.config, data=replace(session.config.data, pool=options)))
    positions = session.dataset.sequences.rows(Role.VALID)
    reached = inside.maker.pools.at(positions).reached[:, 0]
    rows = EvaluationBatches(inside.maker, positions[~reached], 16)
    with pytest.raises(DataError, match="candidate pools holds its target"):
        evaluate(inside.recommender, rows, replace(CONFIG, k=[2]), "valid")
    with pytest.raises(DataError, match=f"none of {len(rows.positions):,} candidate pools holds its target"):
        check_reached(rows)
    some = EvaluationBatches(inside.maker, positions, 16)
    check_reached(some)
    check_reached(session.batches("valid"))
    found = evaluate(inside.recommender, some, replace(CONFIG, k=[2]), "valid")
    assert_same(found.raw["pool_ceiling"], float(reached.double().mean()), 1e-6)
    assert found.raw["recall@2"] <= found.raw["pool_ceiling"] + 1e-6
