from dataclasses import replace

import pytest

from genrl.config import RunConfig
from genrl.config.schema import EvaluateConfig, SelectConfig
from genrl.config.select import cut_of, main_cut, selected, validating, within


@pytest.mark.parametrize(
    ("k", "metric", "chosen"),
    [
        ([1, 5, 10, 50], None, "ndcg@10"),
        ([20, 5], None, "ndcg@20"),
        ([20, 5], "recall@10", "recall@10"),
    ],
)
def test_the_metric_of_verdicts_chooses_weights_unless_another_is_named(k, metric, chosen):
    config = RunConfig(evaluate=EvaluateConfig(k=k), select=SelectConfig(metric=metric))
    assert selected(config) == chosen
    assert RunConfig().select.ranking == "excluded"


@pytest.mark.parametrize(
    ("metric", "k"), [(None, [1, 5, 10, 20]), ("mrr@50", [1, 5, 10, 20, 50]), ("recall@30", [1, 5, 10, 20, 30])]
)
def test_validation_is_narrow_and_has_what_chooses(metric, k):
    config = RunConfig(select=SelectConfig(metric=metric))
    config.evaluate = replace(config.evaluate, readings=True, pass_at=[4])
    found = validating(config)
    assert found == replace(config.evaluate, k=k, exact=False, readings=False, pass_at=None)


def test_cut_offs():
    assert main_cut([10, 50]) == 10
    assert main_cut([3, 5]) == 5
    assert [cut_of(text) for text in ("cold_recall@12", "ndcg@-1", "xndcg@5", "ndcg@5 ")] == [12, None, None, None]
    config = RunConfig(evaluate=EvaluateConfig(k=[1, 20, 60]), select=SelectConfig(metric="mrr@7"))
    assert within(config, 60).k == [1, 7, 20, 60]
    config.select.metric, config.evaluate.k = None, [100, 200]
    assert within(config, 60).k == [60]
