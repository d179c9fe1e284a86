"""The benchmark runs in small, writes what it measured, and stops when two ways to compute the same thing disagree."""

import json
import sys
from dataclasses import fields, replace
from functools import partial

import bench
import pytest
import torch
from benchmarks import checks, decoding, figures
from benchmarks.figures import Figure, compare, interleave
from benchmarks.inputs import CARD, FULL, QUICK, make_inputs, make_thinking

FIELDS = {"met", *(field.name for field in fields(Figure))}
PROVED = {
    "rollout": ["all samples are items", "as frequent as they should be", "log-probs of 32 samples equal"],
    "ways": ["log-probabilities of all ways are equal"],
    "beam": ["ranked lists equal for"],
    "items": ["lower the loss from", "the best 20 are those of an exact search", "sampling and scoring agree"],
    "catalogue": ["one leaf per distinct SID", "all 32 samples are items"],
    "slates": ["all samples are items", "as frequent as they should be", "log-probs of 8 samples equal"],
    "reasoning": ["all samples are items", "equally long", "log-probs of 8 samples equal"],
    "floor": ["the layers hold the 7,168 weights that are counted per token"],
    "reasoning-update": ["log-probs equal to", "gradients to"],
}


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(name, *words):
    return bench.main(["--sizes", "quick", "--only", name, "--repeats", "2", "--threads", "1", *map(str, words)])


@pytest.mark.parametrize("name", PROVED)
def test_a_quick_run_writes_its_figures_and_what_it_checked(name, tmp_path, capsys):
    assert run(name, "--json", tmp_path / "figures.json", "--plot", tmp_path / "figures.png") == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["threads"] == 1
    assert {"torch", "transformers", "trl"} <= written["versions"].keys()
    assert (written["repeats"], written["sizes"]["hidden"]) == (2, QUICK.hidden)
    for figure in written["figures"]:
        assert figure.keys() == FIELDS
        assert figure["name"] == name
        assert figure["ours"] > 0
        assert (figure["goal"], figure["met"]) == (None, None)
        if figure["ratio"] is not None:
            assert figure["quartiles"][0] <= figure["ratio"] <= figure["quartiles"][1]
    text = " ".join(figure["checked"] for figure in written["figures"])
    assert all(words in text for words in PROVED[name])
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")
    assert name in capsys.readouterr().out


def test_a_run_with_unequal_results_fails_and_writes_nothing(tmp_path, monkeypatch, capsys):
    search = decoding.search

    def shifted(*arguments, **options):
        ranking, found = search(*arguments, **options)
        return ranking, replace(found, logps=found.logps + 0.01 / found.logps.shape[1])

    monkeypatch.setattr(decoding, "search", shifted)
    assert run("beam", "--json", tmp_path / "figures.json") == 1
    assert "beam scores differ by 0.01" in capsys.readouterr().err
    assert not (tmp_path / "figures.json").exists()


@pytest.mark.parametrize("name", ["step", "reasoning-step"])
def test_without_trl_the_benchmarks_of_steps_name_the_extra(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert run(name) == 2
    assert f"`{name}` needs trl: pip install -e '.[bench]'" in capsys.readouterr().err


def test_thinking_that_differs_from_the_peers_is_found(monkeypatch, capsys):
    generate = decoding.generate_samples

    def silent(inputs, group, limits):
        short = replace(inputs, layout=make_thinking(replace(QUICK, budget=1)).layout)
        return generate(short, group, decoding.constraint("processor", short))

    monkeypatch.setattr(decoding, "generate_samples", silent)
    assert run("reasoning") == 1
    assert "completions differ in length by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ([], {}),
        (["--sizes", "quick"], None),
        (["--device", "cuda", "--precision", "bf16"], {"device": "cuda", "precision": "bf16"}),
        (["--hidden", "256", "--layers", "8"], {"hidden": 256, "feed_forward": 512, "layers": 8}),
        (["--thinking-prompts", "2", "--budget", "96"], {"thinking_prompts": 2, "budget": 96}),
    ],
)
def test_larger_sizes_are_asked_for_on_the_command_line(words, changes):
    sizes = bench.chosen_sizes(bench._parser().parse_args(words))
    assert sizes == (QUICK if changes is None else replace(FULL, **changes))
    assert (sizes is FULL) == (changes == {})  # goals hold for the full sizes alone


def test_a_gpu_has_goals_of_its_own_and_a_floor_has_none_elsewhere():
    step, floor = (compare(name, "", [1.0], [9.0], checked="", goal=13.0) for name in ("step", "floor"))
    card = replace(CARD, device="cuda", precision="bf16")
    assert [bench.goal(figure, FULL) for figure in (step, floor)] == [13.0, None]
    assert [bench.goal(figure, card) for figure in (step, floor)] == [8.0, 1.5]
    assert [bench.goal(replace(step, goal=None), card), bench.goal(step, CARD), bench.goal(step, QUICK)] == [None] * 3


def test_what_is_timed_in_bf16_is_checked_in_float32(capsys):
    assert run("beam", "--precision", "bf16") == 0
    assert "ranked lists equal for" in capsys.readouterr().out
    inputs = make_inputs(replace(QUICK, precision="bf16"))
    kinds = [{value.dtype for value in one.policy.parameters()} for one in (inputs, inputs.lowered)]
    assert kinds == [{torch.float32}, {torch.bfloat16}]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rollout", "beam", "floor", "catalogue", "items", "ways"])
def test_every_figure_can_be_taken_on_a_gpu(name, tmp_path):
    assert run(name, "--device", "cuda", "--json", tmp_path / "figures.json") == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["card"]["name"] == torch.cuda.get_device_name()
    assert all(figure["ours"] > 0 for figure in written["figures"])


def test_a_gpu_that_is_not_there_and_a_precision_that_is_not_offered_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("rollout", "--device", "cuda") == 2
    assert "PyTorch finds no GPU here" in capsys.readouterr().err
    assert run("items", "--precision", "bf16") == 2
    assert "`items` has float32 alone" in capsys.readouterr().err


def test_variants_are_measured_in_turn_and_the_first_round_does_not_count():
    order = []

    def measure(name):
        order.append(name)
        return float(len(order))

    found = interleave("numbers", {name: partial(measure, name) for name in "ab"}, repeats=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_the_ratio_is_the_median_of_those_of_the_rounds_and_missed_goals_are_shown():
    ours, theirs = [1.0, 2.0, 4.0, 5.0, 8.0], [10.0, 10.0, 10.0, 10.0, 10.0]
    faster = compare("a", "b", ours, theirs, unit="s", checked="c", goal=2.5)
    assert (faster.ratio, faster.quartiles, faster.met) == (2.5, (2.0, 5.0), True)
    slower = compare("a", "b", ours, theirs, unit="s", checked="c", goal=0.3, better="lower")
    assert (slower.ratio, slower.quartiles, slower.met) == (0.4, (0.2, 0.5), False)
    columns = figures.table([faster, slower, replace(faster, goal=None)]).columns
    assert list(columns[-1].cells) == [">= 2.5 met", "<= 0.3 MISSED", ""]


def test_a_completion_that_is_no_item_is_found():
    known = torch.tensor([[1, 2], [1, 3]])
    checks.all_items(known[[0, 1, 1]], known, "us")
    with pytest.raises(checks.DifferenceError, match="us: 1 of 2 completions"):
        checks.all_items(torch.tensor([[1, 2], [2, 3]]), known, "us")


def test_a_sampler_with_wrong_frequencies_is_found():
    right = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    drawn, flipped = (
        torch.multinomial(chances, 2000, replacement=True, generator=torch.Generator().manual_seed(0)).flatten()
        for chances in (right, right.flip(1))
    )
    checks.expected_frequencies(right, drawn, "us")
    with pytest.raises(checks.DifferenceError, match="first choices are not as frequent"):
        checks.expected_frequencies(right, flipped, "us")


def test_rankings_may_differ_by_ties_only():
    tokens = torch.tensor([[[1, 1], [1, 2], [2, 1]]])
    scores = torch.tensor([[-1.0, -2.0, -2.0]])
    other = torch.tensor([[[1, 1], [2, 1], [3, 3]]])  # [3, 3] ties with the last one, which both cut off
    assert checks.same_rankings((tokens, scores), (other, scores)).startswith("ranked lists equal for 0 of 1")
    with pytest.raises(checks.DifferenceError, match="disagree about"):
        checks.same_rankings((tokens, scores), (tokens[:, [1, 0, 2]], scores))
