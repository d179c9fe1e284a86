"""The figures of the papers show what the objectives and the runs say, at the ratios where the papers put the kinks."""

import json
import math
import shutil

import figures
import figures_gradient
import figures_runs
import pytest
import torch

from tests.comparisons import finish, plan_of
from tests.helpers import assert_same
from tests.runs import resealed

OLD = 0.4
STRENGTH = {"diverse": 1.0, "uniform": 1 + 0.5 * math.tanh(math.log(10) / 2)}
"""Lambda where half of the slates have entropy ln 10 and half none, so that their mean lies between."""
RATIOS = torch.arange(0.0105, 2.0, 0.001, dtype=torch.float64)


def clip(low, high):
    return lambda ratio, good, strength: 0.0 if (good and ratio > high) or (not good and ratio < low) else ratio


def gbpo(ratio, good, strength):
    return min(ratio, 1.0) if good else min(ratio, strength * ratio * OLD / (1 - ratio * OLD))


def algorithm(boost, beta):
    """Algorithm 1 of SAGE, with other strengths of its two parts."""
    return lambda ratio, good, strength: clip(2 - (1 + beta * (strength - 1)), 1 + boost)(ratio, good, strength)


def explained(ratio, good, strength):
    return min(ratio, 1.3) if good else gbpo(ratio, good, strength)


def printed(ratio, good, strength):
    return ratio * 1.3 if good and ratio > 1.3 else ratio


SAGE = zip(figures_gradient.READINGS.values(), (algorithm(0.3, 1.0), explained, printed), strict=True)
REFERENCES = [
    ("grpo", {"kl_coef": 0.0}, clip(0.8, 1.2)),
    ("grpo", {"kl_coef": 0.0, "clip_high": 0.28}, clip(0.8, 1.28)),
    ("gbpo", {}, lambda ratio, good, strength: gbpo(ratio, good, 1.0)),
    *(("sage", options, reference) for options, reference in SAGE),
    ("sage", {"boost": 0.0}, algorithm(0.0, 1.0)),
    ("sage", {"beta": 0.0}, algorithm(0.3, 0.0)),
]


@pytest.mark.parametrize(("name", "options", "reference"), REFERENCES)
def test_every_curve_is_that_of_its_paper_with_its_kinks(name, options, reference):
    found = figures_gradient.coefficients(name, options, RATIOS, OLD)
    for (diversity, quality), values in found.items():
        expected = [reference(ratio, quality == "good", STRENGTH[diversity]) for ratio in RATIOS.tolist()]
        assert_same(values, expected)
    for slate, alone in figures_gradient.coefficients(name, options, RATIOS[50:51], OLD).items():
        assert_same(alone, found[slate][50:51])  # whatever the other ratios are


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished runs `sage` and `plain` with two seeds; a hit at rank 2 of `plain` is one at rank 0 of `sage`."""
    plan = plan_of(tmp_path_factory.mktemp("runs"), "sage,plain=sage")
    ranks = {("sage", 0): [0, 0], ("sage", 1): [0, 20], ("plain", 0): [2, 2], ("plain", 1): [0, 20]}
    for row, (candidate,) in plan.rows.items():
        for seed, run in enumerate(candidate.runs):
            finish(run, ranks[row, seed], cold=None)
    return plan.runs[0].folder.parent


@pytest.fixture
def experiment(made, tmp_path):
    return shutil.copytree(made, tmp_path / "toy")


def note(experiment, run, *notes):
    (experiment / run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in notes))
    resealed(experiment / run)


def test_dynamics_are_the_curves_of_the_largest_k_by_run_and_seed(experiment):
    note(experiment, "sage-s0", {"step": 0, "val/entropy@5": 1.0, "val/entropy@10": 2.0}, {"step": 5, "policy/x": 1.0})
    note(experiment, "sage-s1", {"step": 0, "val/entropy@10": 3.0}, {"step": 5, "rollout/cold_share": 0.25})
    note(experiment, "plain-s0", {"step": 0, "val/entropy@10": 1.0, "val/cold_recall@10": math.nan})
    note(experiment, "plain-s1", {"step": 0, "val/ndcg@10": 1.0})
    assert figures_runs.noted_curves(figures_runs.find_rows(experiment)) == {
        "rollout/cold_share": {"sage": [{5: 0.25}]},
        "val/entropy@10": {"plain": [{0: 1.0}], "sage": [{0: 2.0}, {0: 3.0}]},
    }


CURVES = {
    run: [{"step": step, "rollout/cold_share": step / 100, "policy/entropy": 1.0} for step in range(5)]
    for run in ("sage-s0", "sage-s1", "plain-s0", "plain-s1")
}
APART = {"sage-s0": [{"step": 3, "policy/entropy": 1.0}], "sage-s1": [{"step": 4, "policy/entropy": 1.0}]}
APART["plain-s0"] = [{"step": 3, "policy/entropy": math.nan}]


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["gradient"], {}),
        (["dynamics", "EXPERIMENT", "--rows", "sage,plain", "--smooth", "2"], CURVES),
        (["dynamics", "EXPERIMENT"], APART),  # seeds without a common step leave no line
        (["ablation", "EXPERIMENT", "--full", "sage", "--without", "plain", "--kind", "excluded"], {}),
    ],
)
def test_figures_are_drawn(words, noted, experiment, tmp_path, capsys):
    for run, notes in noted.items():
        note(experiment, run, *notes)
    path = tmp_path / "new" / "figure.png"
    assert figures.main([*(word.replace("EXPERIMENT", str(experiment)) for word in words), "--out", str(path)]) == 0
    written = path.read_bytes()
    assert written.startswith(b"\x89PNG")
    assert b"Software" not in written
    assert list(path.parent.iterdir()) == [path]  # nothing temporary is left
    assert str(path) in capsys.readouterr().out


def test_smoothing_looks_back_only():
    for width, values in ((2, [1.0, 1.5, 4.0]), (1, [1.0, 2.0, 6.0])):
        assert figures_runs.smoothed({10: 6.0, 0: 1.0, 5: 2.0}, width) == dict(zip((0, 5, 10), values, strict=True))


def test_an_ablation_is_relative_to_the_mean_of_the_full_method(experiment):
    rows = figures_runs.find_rows(experiment, ["sage", "plain"])
    found = figures_runs.relative_metrics(rows, "sage", "test", "raw")
    assert found["Cold-Recall@10"] == {}  # no run has a cold row
    assert_same(found["NDCG@10"]["sage"], [4 / 3, 2 / 3])
    assert_same(found["NDCG@10"]["plain"], [2 / 3, 2 / 3])  # 1 / log2(4) at rank 2, over .75
    assert_same(found["Recall@10"]["plain"], [4 / 3, 2 / 3])
    assert_same(found["Entropy@10"]["plain"], [1.0, 1.0])


def test_intervals_of_three_seeds_are_seen_and_those_of_two_leave_the_frame():
    assert figures_runs.limits([[0.9, 1.3], [1.0]]) == (0.9, 1.3)
    assert figures_runs.limits([[0.5]]) == (0.5, 1.0)
    half = 4.302652729911275 / math.sqrt(3)  # Student's quantile with two degrees of freedom, deviation 1
    assert_same(torch.tensor(figures_runs.limits([[1.0, 2.0, 3.0]])), [2 - half, 2 + half])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gradient", "--probability", "0.5"], "Give --probability a value below 0.5"),
        (["dynamics", "NOWHERE"], "no such folder. Give the folder of an experiment"),
        (["dynamics", "EXPERIMENT/sage-s0"], "no run of stage rl is finished there"),
        (["dynamics", "EXPERIMENT", "--rows", "sago"], "no finished run is named sago. Did you mean 'sage'?"),
        (["dynamics", "EXPERIMENT", "--smooth", "0"], "--smooth 0: must be at least 1"),
        (["dynamics", "EXPERIMENT"], "the runs noted none of rollout/cold_share"),
        (["ablation", "EXPERIMENT", "--full", "sage", "--without", "grpo"], "no finished run is named grpo. Runs: "),
        (["ablation", "EXPERIMENT", "--full", "sage", "--without", "plain,plain"], "a run stands there twice"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(words, message, experiment, tmp_path, capsys):
    path = tmp_path / "figure.png"
    words = [word.replace("EXPERIMENT", str(experiment)).replace("NOWHERE", str(tmp_path / "no")) for word in words]
    assert figures.main([*words, "--out", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_an_empty_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        figures.main(["ablation", "runs/toy", "--full", "sage", "--without", "plain,"])
    assert "has an empty name" in capsys.readouterr().err
