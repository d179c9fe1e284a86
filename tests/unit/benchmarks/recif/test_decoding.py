import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrl.benchmarks.recif.decoding import Checkpoint, DecodingConfig, merge, nucleus
from genrl.benchmarks.recif.maps import ItemMap
from genrl.benchmarks.recif.rows import TASKS, make_row
from genrl.benchmarks.recif.sids import CODES, number_of, read_generation, sid_text
from genrl.errors import ConfigError
from tests.helpers import assert_same
from tests.unit.benchmarks.recif.models import save_checkpoint

AD, LABEL = TASKS["ad"], TASKS["label_pred"]
OFF = DecodingConfig(beams=4, dtype="float32", batch=2)
THINKING = replace(OFF, thinking="on", thinking_tokens=6)


@pytest.fixture(scope="module")
def rows():
    """Three, with prompts of different lengths."""
    users = ["喜欢什么？" + "".join(sid_text(97 * n + place) for place in range(n)) for n in (1, 4, 2)]
    return [make_row(str(n), [{"role": "user", "content": user}], "", {}, "here") for n, user in enumerate(users)]


@pytest.fixture(scope="module")
def plain(checkpoint):
    return Checkpoint(checkpoint, OFF)


@pytest.fixture(scope="module")
def written(plain, rows):
    return plain.generate(AD, rows)


@pytest.fixture(scope="module")
def thoughtful(checkpoint):
    return Checkpoint(checkpoint, THINKING)


@pytest.fixture(scope="module")
def thoughts(thoughtful, rows):
    return thoughtful.generate(AD, rows)


@pytest.fixture(scope="module")
def peer(checkpoint):
    """The same model and tokenizer, by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)


def log_probs(peer, texts):
    """[n, V] of the token behind each text, one at a time."""
    model, tokenizer = peer
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in texts]
        return torch.stack([model(each).logits[0, -1].log_softmax(-1) for each in ids])


def prompt(row, peer, thinking):
    messages = list(row.messages)
    return peer[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)


def beams(peer, text, width):
    """Plain beam search over three codes, one pass per beam: SIDs, best first."""
    found = [(0.0, text, ())]
    for level in "abc":
        first = peer[1].convert_tokens_to_ids(f"<s_{level}_0>")
        said = log_probs(peer, [each for _, each, _ in found])[:, first : first + CODES]
        totals = said + torch.tensor([total for total, *_ in found])[:, None]
        best = totals.flatten().topk(width)
        found = [
            (
                total,
                f"{found[place // CODES][1]}<s_{level}_{place % CODES}>",
                (*found[place // CODES][2], place % CODES),
            )
            for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return [number_of(codes) for _, _, codes in found]


def sids(texts):
    return [read_generation(text, whole=True) for text in texts]


def test_beams_behind_the_chat_template_are_those_of_a_plain_search(written, rows, peer):
    assert list(written) == ["0", "1", "2"]
    for row in rows:
        assert sids(written[row.name]) == beams(peer, f"{prompt(row, peer, False)}<|sid_begin|>", 4)


def test_the_map_keeps_beams_to_its_sids_ranked_as_the_model_ranks_them(checkpoint, rows, written, peer):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.cat([torch.randint(0, CODES**3, (5,), generator=generator), torch.tensor(sids(written["1"]))])
    items = ItemMap(numbers.sort().values, torch.arange(9), 0)
    found = Checkpoint(checkpoint, replace(OFF, beams=12, among="map"), items).generate(AD, rows[:1])["0"]
    begun, scores = f"{prompt(rows[0], peer, False)}<|sid_begin|>", []
    for number in items.sids.tolist():
        tokens = [f"<s_{level}_{code}>" for level, code in zip("abc", codes_of(number), strict=True)]
        said = log_probs(peer, [begun + "".join(tokens[:place]) for place in range(3)])
        ids = torch.tensor(peer[1].convert_tokens_to_ids(tokens))
        scores.append(float(said.gather(1, ids[:, None]).sum()))
    ranked = torch.tensor(scores).argsort(descending=True)
    assert sids(found) == items.sids[ranked].tolist()  # nine, although twelve were asked for


def codes_of(number):
    return number // CODES**2, number // CODES % CODES, number % CODES


def test_a_thought_is_sampled_once_and_beams_stand_behind_it(thoughts, rows, peer):
    for row in rows:
        heads = {text.partition("</think>")[0] for text in thoughts[row.name]}
        assert len(heads) == 1
        begun = f"{prompt(row, peer, True)}{heads.pop()}</think>\n<|sid_begin|>"
        assert sids(thoughts[row.name]) == beams(peer, begun, 4)
        assert all("</think>\n<|sid_begin|>" in text for text in thoughts[row.name])


def test_thoughts_depend_on_row_and_seed_and_not_on_the_batch(checkpoint, thoughts, rows):
    assert Checkpoint(checkpoint, replace(THINKING, batch=1)).generate(AD, rows) == thoughts
    assert Checkpoint(checkpoint, replace(THINKING, seed=1)).generate(AD, rows[:1])["0"] != thoughts["0"]
    assert len({texts[0].partition("</think>")[0] for texts in thoughts.values()}) == 3


def test_with_one_likeliest_token_a_thought_is_greedy_until_it_closes_or_is_cut_off(checkpoint, rows, peer):
    greedy = Checkpoint(checkpoint, replace(THINKING, top_k=1))
    for row in rows[:2]:
        text, ids = prompt(row, peer, True), []
        for _ in range(6):
            ids.append(int(log_probs(peer, [text + peer[1].decode(ids)]).argmax()))
        said = greedy.generate(AD, [row])[row.name][0].partition("</think>")[0]
        assert said == peer[1].decode(ids)
    assert greedy.unclosed == 2
    closing = peer[1].convert_tokens_to_ids("</think>")
    greedy.ends = torch.tensor([ids[2], closing])  # as if the third token ended it
    assert greedy.generate(AD, rows[1:2])["1"][0].startswith(peer[1].decode(ids[:2]) + "</think>\n<|sid_begin|>")
    assert greedy.unclosed == 2


def test_a_race_has_half_of_each_list_in_turn(checkpoint, written, thoughts, rows):
    race = Checkpoint(checkpoint, replace(THINKING, thinking="race")).generate(AD, rows)
    for row in rows:
        a, b = written[row.name], thoughts[row.name]
        assert race[row.name] == [a[0], b[0], a[1], b[1]]
    assert merge("abc", "xyz", 3) == ["a", "x", "b"]


def test_labels_are_probabilities_of_the_first_token(plain, thoughtful, rows, peer):
    found = plain.generate(LABEL, rows)
    yes, no = (peer[1].convert_tokens_to_ids(text) for text in "是否")
    for row in rows:
        (text,) = found[row.name]
        said = log_probs(peer, [prompt(row, peer, False)])[0].exp()
        assert_same(json.loads(text)["是"] / float(said[yes]), 1.0, 1e-4)
        assert_same(json.loads(text)["否"] / float(said[no]), 1.0, 1e-4)
    (text,) = thoughtful.generate(LABEL, rows[:1])["0"]
    head, _, tail = text.partition("</think>\n")
    said = log_probs(peer, [f"{prompt(rows[0], peer, True)}{head}</think>\n"])[0].exp()
    assert_same(json.loads(tail)["是"] / float(said[yes]), 1.0, 1e-4)


def test_the_nucleus_is_taken_of_the_likeliest_tokens_behind_the_temperature():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64).log()
    kept, tokens = nucleus(logits, 1.0, 3, 0.7)  # of .4 .3 .2 over .9 the first two are enough
    assert tokens[0].tolist() == [0, 2, 3]
    assert_same(kept, torch.tensor([[4 / 7, 3 / 7, 0], [1, 0, 0]], dtype=torch.float64))
    assert_same(nucleus(logits, 1.0, 50, 1.0)[0].sum(1), torch.ones(2, dtype=torch.float64))
    squares = torch.tensor([0.16, 0.09, 0.04, 0.01], dtype=torch.float64)
    assert_same(nucleus(logits, 0.5, 4, 1.0)[0][0], squares / squares.sum())


@pytest.mark.parametrize(
    ("tokenizer", "config", "says"),
    [
        ({"levels": "ab"}, OFF, r"has the SID token <s_c_0> not at all: 8,192 tokens <s_c_0> \.\. <s_c_8191>"),
        ({"template": None}, OFF, "has no chat template.* chat_template=FILE"),
        ({"without": ["<|sid_begin|>"]}, OFF, r"has no token for <\|sid_begin\|>, which the protocol of RecIF-Bench"),
        ({"without": ["</think>"]}, THINKING, "has no token for </think>"),
        ({}, replace(OFF, chat_template="missing.jinja"), "missing.jinja: no such file, given by chat_template"),
        ({}, replace(OFF, device="quantum"), "device='quantum' cannot be used"),
        (None, OFF, r"no Hugging Face model there \(no config.json\)"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path, tokenizer, config, says):
    if tokenizer is not None:
        save_checkpoint(tmp_path, **tokenizer)
    with pytest.raises(ConfigError, match=says):
        Checkpoint(tmp_path, config)


def test_prompts_that_do_not_fit_or_cannot_be_written_are_refused(tmp_path, rows):
    folder = save_checkpoint(tmp_path, positions=32, without=["否"])
    with pytest.raises(ConfigError, match=r"longest prompt and its generation have .* more than the 32 positions"):
        Checkpoint(folder, OFF).generate(AD, rows)
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('no system message') }}")
    with pytest.raises(ConfigError, match="does not write row 0: no system message"):
        Checkpoint(folder, replace(OFF, chat_template=str(template))).generate(AD, rows)
    template.write_text("{{ messages[0].role }}")
    with pytest.raises(ConfigError, match="writes the same prompts with and without thinking"):
        Checkpoint(folder, replace(THINKING, thinking="race", chat_template=str(template))).generate(AD, rows)
    with pytest.raises(ConfigError, match="has no token for 否"):
        Checkpoint(folder, replace(OFF, chat_template=str(template))).generate(LABEL, rows)
