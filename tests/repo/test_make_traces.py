"""A local model writes traces in batches that do not depend on padding, and the tool keeps what can be used."""

import json
from dataclasses import dataclass, field

import make_traces
import pytest
import teacher
import torch

from genrl.catalog.dataset import load_dataset
from genrl.config.schema import DataConfig, ToyConfig
from genrl.errors import ConfigError, DataError
from genrl.prompts.traces import read_traces
from genrl.sid.table import make_table
from tests.models import save_local_model

DATASET = load_dataset(DataConfig(toy=ToyConfig(world="toy", users=60, items=60)))
ROWS = torch.arange(60)
TABLE = make_table(torch.stack([ROWS // 10, ROWS % 10], 1), (6, 10), DATASET.catalog)
TOY = ["data.toy.users=60", "data.toy.items=60", "data.max_history=3", "sid.codes=8", "sid.levels=2"]
GOOD = "1. They like the kitchen.\n2. Something to cut with."


@dataclass
class Script:
    """Answers by rule, and remembers what it was asked."""

    answer: str = GOOD
    choice: str = "right"
    asked: list[str] = field(default_factory=list)
    fails_at: int = 10_000
    whole: bool = True

    def settings(self):
        return {"model": "script"}

    def write(self, prompts):
        if len(self.asked) + len(prompts) > self.fails_at:
            raise KeyboardInterrupt
        self.asked += prompts
        return [(self.answer.format(target=target_of(prompt)), self.whole) for prompt in prompts]

    def choose(self, prompts, options):
        return [0] * len(prompts)


def target_of(prompt):
    return prompt.partition("The next product they bought is: ")[2].partition("\n")[0]


def task(candidates=0, seed=0):
    return make_traces.Task(DATASET, TABLE, 3, candidates, seed)


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def write(out, script, limit, **options):
    """What is said of the first `limit` positions, four at a time."""
    return make_traces.make_traces(task(**options), script, out, limit, 4)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "traces.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_local_model(tmp_path_factory.mktemp("chat"), max_position_embeddings=4096)


def load(folder, temperature=0.0, new_tokens=6):
    return teacher.Teacher.load(str(folder), "cpu", new_tokens, temperature)


def test_what_is_kept_can_be_read_and_prompts_show_history_and_target(out):
    script = Script()
    said = write(out, script, 10)
    traces = read_traces(out, DATASET, 2)
    assert [trace.position for trace in traces] == task().positions()[:10]
    assert {trace.blocks for trace in traces} == {("They like the kitchen.", "Something to cut with.")}
    assert said.startswith("kept 10 of 10 (100.0%); dropped: none; 4.0 words per block")
    for trace, prompt in zip(traces, script.asked, strict=True):
        history, target = task().titles(trace.position)
        shown = prompt.partition("oldest first:\n")[2].partition("\n\n")[0]
        assert shown.splitlines() == [f"- {title}" for title in history]
        assert 1 <= len(history) <= 3
        assert target_of(prompt) == target
        assert "exactly 2 steps" in prompt


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script("1. They like the kitchen."), "wrong number of blocks"),
        (Script("1. One\n2. Two\n3. Three"), "wrong number of blocks"),
        (Script("No\u2028steps\u0085here\u2029at all"), "wrong number of blocks"),  # which is one line of the file
        (Script("1. They want the\n2. {target}, clearly."), "title"),
        (Script(whole=False), "cut off"),
    ],
)
def test_traces_that_cannot_be_used_are_dropped_with_the_reason_and_not_asked_for_again(out, script, reason):
    script.asked.clear()
    for _ in range(2):
        assert f"kept 0 of 5 (0.0%); dropped: {reason}: 5; 0.0 words" in write(out, script, 5)
    assert len(script.asked) == 5
    assert out.read_text() == ""
    dropped = lines(out.with_suffix(".dropped.jsonl"))
    assert [(line["reason"], line["answer"][:2]) for line in dropped] == [(reason, script.answer[:2])] * 5
    notes = json.loads(out.with_suffix(".json").read_text())
    assert (notes["kept"], notes["dropped"]) == (0, {reason: 5})


def test_a_trace_is_kept_only_if_the_target_is_found_with_it(out):
    wanted = task(candidates=3).positions()[:20]
    write(out, Script(), 20, candidates=3)
    right = {position for position in wanted if task(candidates=3).options(position)[1] == 0}
    assert {trace.position for trace in read_traces(out, DATASET, 2)} == right
    assert 0 < len(right) < 20
    reasons = [line["reason"] for line in lines(out.with_suffix(".dropped.jsonl"))]
    assert reasons == ["wrong answer"] * (20 - len(right))


def test_candidates_are_the_target_and_others_that_the_user_does_not_have():
    places = set()
    for position in task().positions()[:30]:
        titles, place = task(candidates=5).options(position)
        history, target = task().titles(position)
        assert titles[place] == target
        assert len(set(titles)) == 5
        assert not set(titles) & set(history) - {target}
        places.add(place)
    assert len(places) == 5


def test_an_interrupted_call_goes_on_and_drops_half_a_line(out):
    whole = out.with_name("whole.jsonl")
    write(whole, Script(), 12)
    with pytest.raises(KeyboardInterrupt):
        write(out, Script(fails_at=9), 12)
    assert len(lines(out)) == 8
    out.write_text(out.read_text()[:-20])
    again = Script()
    write(out, again, 12)
    assert len(again.asked) == 5
    assert out.read_text() == whole.read_text()
    write(out, again, 14)
    assert len(again.asked) == 7


def test_two_teachers_of_one_name_are_told_apart(tmp_path):
    spreads = (0.02, 0.03)
    folders = [save_local_model(tmp_path / str(spread) / "main", initializer_range=spread) for spread in spreads]
    first, second = (load(folder).settings() for folder in folders)
    assert first["model"] == second["model"] == "main"
    assert first["weights"] != second["weights"]
    assert load(folders[0]).settings() == first
    assert load(folders[0], new_tokens=7).settings() != first


def test_a_file_of_other_settings_and_a_damaged_line_are_refused(out):
    write(out, Script(), 2)
    with pytest.raises(ConfigError, match=r"was begun with seed=0 .now 1.\. Use the same settings"):
        write(out, Script(), 2, seed=1)
    out.write_text("{broken}\n" + out.read_text())
    with pytest.raises(DataError, match=r"traces.jsonl:1: damaged"):
        write(out, Script(), 2)
    out.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match=r"traces.json, which says how it was made, is not"):
        write(out, Script(), 2)


def test_answers_do_not_depend_on_the_other_prompts_of_a_batch(folder):
    model = load(folder)
    prompts = ["red apple", "green pear tart and blue plum jam " * 5, "sweet"]
    for prompt, (text, whole) in zip(prompts, model.write(prompts), strict=True):
        ids = model.tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != model.tokenizer.eos_token_id):
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == model.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert whole == (ids[-1] == model.tokenizer.eos_token_id)


def test_the_letter_chosen_is_the_likeliest_of_those_on_offer(folder, monkeypatch):
    monkeypatch.setattr(teacher, "LETTERS", "abdegijlmnpr")  # the small tokenizer knows these
    model = load(folder)
    prompts = ["red apple", "green pear tart and blue plum jam " * 5, "sweet", "sweet red"]
    options = [4, 2, 3, 12]
    for prompt, count, chosen in zip(prompts, options, model.choose(prompts, options), strict=True):
        scores = model.model(model.tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1]
        ids = [model.tokenizer(letter, add_special_tokens=False)["input_ids"][-1] for letter in teacher.LETTERS[:count]]
        assert chosen == int(scores[ids].argmax())


def test_a_chat_template_is_used_where_there_is_one(folder):
    model = load(folder)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}answer"
    tokens = model._encode(["red apple"], 1)["input_ids"][0]
    assert model.tokenizer.decode(tokens).strip() == "user red apple answer"


def test_a_random_model_runs_from_the_command_line_and_everything_it_writes_is_dropped(folder, out, capsys):
    words = [*TOY, f"output={out.parent}", "--model", str(folder), "--out", str(out), "--limit", "3", "--batch", "2"]
    words += ["--max-new-tokens", "8", "--check-answer"]
    assert make_traces.main(words) == 0
    assert "kept 0 of 3 (0.0%); dropped: wrong number of blocks: 3" in capsys.readouterr().out
    settings = json.loads(out.with_suffix(".json").read_text())["settings"]
    assert (settings["check_answer"], settings["max_history"]) == (10, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "traces.txt"], "its name must end in .jsonl"),
        (["--out", "t.jsonl", "--check-answer", "30"], "choose between 2 and 26 candidates"),
        (["--out", "t.jsonl", "--batch", "0"], "--batch 0: it must be at least 1"),
        (["--out", "t.jsonl", "--temperature", "-1"], "cannot be negative"),
        (["--out", "t.jsonl"], "no folder with a Hugging Face model"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert make_traces.main([*TOY, "--model", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_what_the_model_cannot_read_or_write_is_refused(folder):
    model = load(folder)
    with pytest.raises(ConfigError, match=r"have \d+ tokens, but .* reads 4096. Lower data.max_history"):
        model.write(["red apple " * 3000])
    with pytest.raises(ConfigError, match="has no token for each of ABC"):
        model.choose(["red apple"], [3])


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ("<think>1. No\n2. No</think>\nHere:\n1) Yes.\n2) And so.", ("Yes.", "And so.")),
        ("**Step 1:** Yes\nand\n\nmore\nStep 2: So.\n\nBye", ("Yes and", "So.")),
        ("1. Yes.\n2.", ()),
        ("2. Yes.\n1. No.", ()),
        ("They like tea.", ()),
    ],
)
def test_steps_are_read_from_answers_of_several_forms(answer, steps):
    assert teacher.read_steps(answer) == steps
