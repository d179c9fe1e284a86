"""The metric class: equal to the functions, exact over batches, padding rows and processes."""

import math

import pytest
import torch
import torch.multiprocessing

from genrl.batches import Ranking, Targets
from genrl.metrics import RankingMetrics, per_row_metrics
from genrl.metrics import functional as F
from tests.helpers import assert_same

CATALOG, WIDTH = 30, 12


def case(rows, seed=0, targets=2):
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(-1, CATALOG, (rows, WIDTH), generator=generator)
    wanted = torch.randint(-1, CATALOG, (rows, targets), generator=generator)
    history = torch.randint(-1, CATALOG, (rows, 5), generator=generator)
    scores = torch.linspace(0, -1, WIDTH).repeat(rows, 1)
    return Ranking(items, scores), Targets(wanted), history


def make(**options):
    cold = torch.arange(CATALOG) % 3 == 0
    categories = torch.arange(CATALOG) % 5 - 1
    codes = (torch.arange(CATALOG) // 2).unsqueeze(1)  # two items to a SID
    return RankingMetrics(cold, categories, **{"codes": codes, **options})


def measured(metrics, ranking, targets, **known):
    metrics.update(ranking, targets, **known)
    return metrics.compute()


def ranked(*items):
    return Ranking(torch.tensor(items), torch.zeros(len(items), len(items[0])))


def wanted(*items):
    return Targets(torch.tensor(items))


def rows_of(ranking, targets, history, rows):
    return Ranking(ranking.items[rows], ranking.scores[rows]), targets.rows(rows), history[rows]


def assert_all_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        if math.isnan(value) and math.isnan(right[name]):
            continue
        assert_same(value, right[name])


def test_tied_and_untied_targets_are_scored_apart_on_request():
    ranking, targets, history = case(40)
    tied = torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.4
    flagged = Targets(targets.items, tied=tied[:, None].expand(-1, 2).contiguous())
    values = measured(make(ties=True), ranking, flagged, history=history)
    for name, rows in (("tied", tied), ("untied", ~tied)):
        part = measured(make(), ranking, targets, rows=rows)
        assert values[f"{name}_rows"] == part["rows"] > 5
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
            assert_same(values[f"{name}_{metric}"], part[metric])
    plain = measured(make(), ranking, flagged, history=history)
    assert_all_same(plain, {name: value for name, value in values.items() if "tied" not in name})


def test_it_reports_the_functions_means():
    ranking, targets, history = case(40)
    metrics = make()
    values = measured(metrics, ranking, targets, history=history)
    ranks = F.target_ranks(ranking.items, targets.items)
    aimed = F.has_target(ranks)
    assert_same(values["recall@5"], F.recall_at_k(ranks, 5)[aimed].mean().item())
    assert_same(values["ndcg@10"], F.ndcg_at_k(ranks, 10)[aimed].mean().item())
    assert_same(values["mrr@10"], F.reciprocal_rank_at_k(ranks, 10)[aimed].mean().item())
    assert values["rows"] == aimed.sum()
    cold = [[t for t in row if t >= 0 and t % 3 == 0] for row in targets.items.tolist()]
    hits = [
        len(set(wanted) & set(top[:10])) / len(set(wanted))
        for wanted, top in zip(cold, F.distinct(ranking.items).tolist(), strict=True)
        if wanted
    ]
    assert_same(values["cold_recall@10"], sum(hits) / len(hits))
    assert values["cold_rows"] == len(hits)
    exposure = F.exposures(ranking.items, 10, CATALOG)
    assert_same(values["coverage@10"], F.coverage(exposure).item())
    assert_same(values["top1pct_share@10"], F.top_share(exposure).item())
    assert_same(values["gini@10"], F.gini(exposure).item())
    assert_same(values["valid_rate"], (ranking.items[:, :10] >= 0).double().mean().item())
    assert_same(values["history_share@10"], F.history_slots(ranking.items, history, 10).mean().item())
    rows = zip(targets.items.tolist(), history.tolist(), strict=True)
    again = torch.tensor([bool(set(wanted) & set(seen) - {-1}) for wanted, seen in rows])
    assert_same(values["target_seen"], again[aimed].double().mean().item())
    assert "target_seen" not in measured(make(), ranking, targets, history=torch.full_like(history, -1))
    assert "target_seen" not in measured(make(), ranking, targets)
    entropy, counted = F.entropy_at_k(ranking.items, metrics.categories, 4, 10)
    assert_same(values["entropy@10"], entropy[counted].mean().item() / math.log(2))
    assert_same(values["entropy_normalized@10"], entropy[counted].mean().item() / math.log(4))
    assert values["entropy_normalized@5"] <= 1
    pooled = F.corpus_entropy(exposure, metrics.categories, 4).item()
    assert_same(values["entropy_corpus@10"], pooled / math.log(2))


def test_neither_batches_nor_padding_rows_nor_the_order_of_rows_matter():
    ranking, targets, history = case(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    parts = make()
    for start in range(0, 50, 16):
        rows = order[torch.arange(start, start + 16).clamp(max=49)]  # the last batch repeats a row, masked out
        *batch, seen = rows_of(ranking, targets, history, rows)
        parts.update(*batch, rows=torch.arange(start, start + 16) < 50, history=seen)
    assert_all_same(parts.compute(), measured(make(), ranking, targets, history=history))


def test_levels_differ_where_items_share_a_sid():
    for level, recall in (("item", 0.0), ("sid", 1.0)):  # item 1 shares its SID with item 0
        assert measured(make(k=[3], level=level), ranked([0, 5, 8]), wanted([1]))["recall@3"] == recall


def test_a_sid_takes_one_place():
    codes = (torch.arange(8) // 2).unsqueeze(1)  # the SIDs of the ranking are 0 0 1 3
    outcome = per_row_metrics(ranked([0, 1, 2, 6]), wanted([7]), k=[3], codes=codes)
    assert outcome["rank"].tolist() == [2]
    assert outcome["recall@3"].tolist() == [1.0]


def test_a_cold_target_counts_even_beside_a_warm_one_of_the_same_sid():
    cold, codes = torch.tensor([False, True]), torch.tensor([[0], [0]])
    metrics = RankingMetrics(cold, torch.zeros(2, dtype=torch.int64), [1], codes, level="sid")
    values = measured(metrics, ranked([0]), wanted([0, 1]))
    assert (values["cold_recall@1"], values["cold_rows"]) == (1, 1)


def test_golden_cold():
    # Golden: 40 items with training frequency 1..40, the bottom 5% are items 0 and 1.
    metrics = RankingMetrics(torch.arange(40) < 2, torch.zeros(40, dtype=torch.int64), k=[1])
    values = measured(metrics, ranked([0], [5], [7], [39]), wanted([0], [5], [1], [39]))  # hit, hit, miss, hit
    assert (values["cold_recall@1"], values["cold_rows"]) == (0.5, 2)
    assert (values["recall@1"], values["rows"]) == (0.75, 4)
    assert values["entropy_normalized@1"] == 0


def test_rows_without_targets_are_left_out():
    values = measured(make(k=[1]), ranked([3], [4]), wanted([3], [-1]))
    assert (values["recall@1"], values["rows"]) == (1.0, 1)


def test_no_cold_row_is_no_recall_of_zero_and_a_catalogue_without_categories_has_no_entropy():
    metrics = RankingMetrics(torch.zeros(4, dtype=torch.bool), torch.full((4,), -1), k=[1], category_count=0)
    values = measured(metrics, ranked([0]), wanted([0]))
    names = ("cold_recall@1", "entropy@1", "entropy_normalized@1", "entropy_corpus@1")
    assert all(math.isnan(values[name]) for name in names)
    assert (values["cold_rows"], values["recall@1"]) == (0, 1)
    assert "history_share@1" not in values


def test_states_forget_when_reset_also_in_inference_mode():
    ranking, targets, _ = case(10)
    metrics = make()
    with torch.inference_mode():
        first = measured(metrics, ranking, targets)
        metrics.reset()
    assert_all_same(measured(metrics, ranking, targets), first)


def test_refusals():
    ranking, targets, _ = case(4)
    with pytest.raises(ValueError, match="ranking of 12 items cannot give metrics @20"):
        make(k=[20]).update(ranking, targets)
    with pytest.raises(ValueError, match="at least 20"):
        per_row_metrics(ranking, targets, k=[20])
    with pytest.raises(ValueError, match="k >= 1"):
        make(k=[])
    with pytest.raises(ValueError, match="needs the codes"):
        make(level="sid", codes=None)


def test_outcomes_of_rows_average_to_the_metrics():
    ranking, targets, _ = case(25, targets=1)
    values, outcomes = measured(make(), ranking, targets), per_row_metrics(ranking, targets)
    aimed = outcomes["rank"] >= 0
    assert_same(outcomes["recall@10"][aimed].mean(), values["recall@10"])
    assert_same(outcomes["ndcg@5"][aimed].mean().item(), values["ndcg@5"])
    assert_same((outcomes["rank"][aimed] < 10).double().mean().item(), values["recall@10"])


def evaluate_rank(rank, store, answers):
    """One of two processes: 33 rows against 17, the second with a batch that is padding only."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ranking, targets, history = case(50)
    mine = torch.arange(33) if rank == 0 else torch.arange(33, 50)
    metrics = make()
    for start in range(0, 36, 12):
        places = torch.arange(start, start + 12)
        batch = rows_of(ranking, targets, history, mine[places.clamp(max=len(mine) - 1)])
        metrics.update(*batch[:2], rows=places < len(mine), history=batch[2])
    answers[rank] = metrics.compute()
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_rows_are_exact(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        answers = manager.dict()
        workers = [context.Process(target=evaluate_rank, args=(rank, tmp_path / "store", answers)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
        assert [worker.exitcode for worker in workers] == [0, 0]
        first, second = dict(answers[0]), dict(answers[1])
    ranking, targets, history = case(50)
    assert_all_same(first, second)
    assert_all_same(first, measured(make(), ranking, targets, history=history))
