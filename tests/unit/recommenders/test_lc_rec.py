from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.batches import Requests
from genrl.catalog.dataset import load_dataset
from genrl.catalog.sequences import Role
from genrl.config.schema import DataConfig, ModelConfig, ToyConfig
from genrl.errors import ConfigError
from genrl.policy.search import search
from genrl.prompts.packing import SequenceBatch, SequenceBatches
from genrl.recommenders import Problem
from genrl.recommenders.lc_rec import LCRec, LCRecConfig
from genrl.sid import build_sid_table
from genrl.sid.table import CollisionReport, SidTable
from tests.helpers import assert_same
from tests.unit.recommenders.problems import dataset_of

MODEL = ModelConfig(hidden=16, layers=1, heads=2, feed_forward=32, vocabulary=300, dropout=0.0)


@pytest.fixture(scope="module")
def problem() -> Problem:
    dataset = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=40, items=60)))
    return Problem(dataset, build_sid_table({"name": "kmeans", "codes": 6}, dataset), MODEL)


def make(problem: Problem, **options: float) -> LCRec:
    model = LCRec(LCRecConfig(**{"max_length": 6, **options}), problem=problem)
    return model.eval()


@pytest.fixture(scope="module")
def model(problem: Problem) -> LCRec:
    return make(problem)


@pytest.fixture(scope="module")
def batch(problem: Problem) -> SequenceBatch:
    return SequenceBatches(problem.dataset, "user", 7, 8).step(0)


def slow_loss(model: LCRec, batch: SequenceBatch) -> Tensor:
    """Every target of every row alone, scored by ranking all items behind its history."""
    layout, total = model.layout, torch.zeros(())
    for items, targets in zip(batch.items, batch.targets, strict=True):
        for place in torch.nonzero(targets).flatten().tolist():
            tokens, mask = model.prompts.render(items[None, :place])
            found, _ = search(model.policy, layout, Requests(tokens, mask, tokens[:, :0]), layout.completions)
            total = total - found.scores[0][found.items[0] == items[place]][0]
    return total


def test_the_loss_without_alignment_is_that_of_ranking_each_target_behind_its_history(problem, batch):
    model = make(problem, alignment=0.0)
    with torch.no_grad():
        assert_same(model.loss(batch) / batch.share, slow_loss(model, batch) / batch.share)


def test_all_four_alignment_tasks_are_drawn_and_name_the_right_item(problem, model, batch):
    torch.manual_seed(0)
    titles, tokenizer = problem.dataset.catalog.titles, model.policy.tokenizer
    by_sid = {tuple(sid): row for row, sid in enumerate(model.prompts.sid_tokens.tolist())}
    seen = set()
    for _ in range(12):
        for example, items, targets in zip(model.alignment.draw(batch), batch.items, batch.targets, strict=True):
            wanted = set(items[targets].tolist())
            if len(example.items):
                asked = int(example.items[0])
                assert by_sid[tuple(example.tokens[int(example.item_starts[0]) :].tolist())] == asked
                task, explicit = "sid", model.alignment.explicit[asked][1]
            else:
                said = tokenizer.decode(example.tokens[example.text_starts[:-1]]).strip()
                asked = next(item for item in wanted if titles[item] == said)
                task, explicit = "title", model.alignment.explicit[asked][0]
            assert asked in wanted
            seen.add((task, example.tokens.tolist() == explicit.tokens.tolist()))
    assert seen == {("sid", True), ("sid", False), ("title", True), ("title", False)}


def test_every_trained_weight_gets_a_gradient_of_zero_without_rows(problem, batch):
    model = make(problem).train()
    value = model.loss(replace(batch, items=batch.items[:0], targets=batch.targets[:0]))
    value.backward()
    assert value.item() == 0
    for name, parameter in model.trained().items():
        assert parameter.grad is not None, name  # other processes wait for it
        assert not parameter.grad.any(), name
    torch.manual_seed(0)
    model.loss(batch).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.trained().values())


def test_a_wide_beam_ranks_all_items_and_leaves_out_what_is_denied(problem, model):
    histories = problem.dataset.sequences.histories(problem.dataset.sequences.rows(Role.TEST)[:5], 9)
    every = model.best(histories, 70)
    assert every.items.shape == (5, 70)
    assert [sorted(row) for row in every.items[:, :60].tolist()] == [list(range(60))] * 5
    assert bool((every.items[:, 60:] == -1).all())
    unseen = model.best(histories, 10, deny=histories)
    for row, history in enumerate(histories.tolist()):
        wanted = [item for item in every.items[row, :60].tolist() if item not in history][:10]
        assert unseen.items[row].tolist() == wanted


def test_only_the_latest_items_of_a_history_count_and_none_at_all_is_fine(model):
    long = torch.arange(12)[None]
    assert torch.equal(model.best(long, 5).items, model.best(long[:, -6:], 5).items)
    assert model.best(torch.full((1, 3), -1), 5).items.min() >= 0


def test_weights_go_to_another_instance(problem, model):
    other = LCRec(LCRecConfig(max_length=6), problem=replace(problem, model=replace(MODEL, seed=1))).eval()
    history = torch.tensor([[3, 4]])
    assert not torch.equal(other.best(history, 60).items, model.best(history, 60).items)
    other.load_state(model.state(), "weights")
    assert torch.equal(other.best(history, 60).scores, model.best(history, 60).scores)


def test_a_history_that_the_backbone_cannot_hold_is_refused(problem):
    with pytest.raises(ConfigError, match=r"baseline.max_length=100000 .* Lower baseline.max_length"):
        make(problem, max_length=100_000)


def test_items_that_share_a_sid_are_all_ranked():
    dataset = dataset_of([[0, 1, 2, 3], [3, 2, 1, 4], [5, 6, 7, 1]], size=9)
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [2, 0], [2, 0], [2, 1]])
    report = CollisionReport(9, 6, 0, 1, 0.0, 9, (3, 2), (3.0, 2.0))
    table = SidTable(codes, (3, 2), dataset.catalog.fingerprint, report)
    model = make(Problem(dataset, table, MODEL))
    found = model.best(torch.tensor([[0, 1]]), 11)
    assert sorted(found.items[0].tolist()) == [-1, -1, *range(9)]
    denied = model.best(torch.tensor([[0, 1]]), 11, torch.tensor([[3, 8]]))
    assert denied.items[0].tolist() == [item for item in found.items[0].tolist() if item not in (3, 8)] + [-1, -1]
