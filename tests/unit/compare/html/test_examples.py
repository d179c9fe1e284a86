from __future__ import annotations

from genrl.compare.html.examples import example
from tests.pages import Page, samples


def test_an_example_shows_what_was_written_how_it_was_rewarded_and_where_it_is_pushed() -> None:
    page = Page(example(samples()["grpo"][0]))
    assert "history Red Shoe → Red Pan target Green Pan 0 8 7" in page.text.replace("  ", " ")
    assert page.rows[0] == [
        *("completion", "reward", "exact match", "level match", "step 1", "step 2", "step 3", "log-prob"),
    ]
    assert page.rows[1] == ["Blue Pan", "2.00", "0.00", "2.00", "0 +1.50", "8 −0.25", "6 0", "−4.50"]


def test_codes_are_marked_where_they_are_those_of_the_target() -> None:
    page = Page(example(samples()["grpo"][0]))
    classes = [attributes["class"] for attributes in page.named("span") if "code" in (attributes["class"] or "")]
    assert classes == ["code", "code", "code", "code hit", "code hit", "code"]  # first the target itself


def test_steps_are_shaded_by_sign_and_size_of_their_advantage() -> None:
    cells = [a for a in Page(example(samples()["grpo"][0])).named("td") if "push" in (a.get("class") or "")]
    assert [(cell["class"], cell["style"]) for cell in cells] == [
        ("push more", "--strength:1.00"),
        ("push less", "--strength:0.17"),
        ("push", "--strength:0.00"),
    ]


def test_a_completion_that_was_drawn_several_times_says_so() -> None:
    sample = samples()["grpo"][0]
    (completion,) = sample["completions"]
    page = Page(example({**sample, "completions": [{**completion, "drawn": 3}, {**completion, "drawn": 1}]}))
    assert [row[0] for row in page.rows[1:]] == ["Blue Pan (drawn 3 times)", "Blue Pan"]


def test_odd_samples_are_shown_too() -> None:
    sample = samples()["grpo"][0]
    (completion,) = sample["completions"]
    longer = {**completion, "codes": [0, 8, 7, 1], "advantages": [0.0, 0.0]}
    page = Page(example({**sample, "history": [], "completions": [longer, completion]}))
    assert "history (empty)" in page.text
    assert page.rows[1][4:8] == ["0 0", "8 0", "7 0", "1 0"]
    assert page.rows[2][4:] == ["0 +1.50", "8 −0.25", "6 0", "", "−4.50"]  # cells stay below their heads
    assert "No completion was kept." in Page(example({**sample, "completions": []})).text


def test_thinking_stands_below_the_item() -> None:
    sample = samples()["grpo"][0]
    (completion,) = sample["completions"]
    page = Page(example({**sample, "completions": [{**completion, "thinking": ["red <b>", "a pan"]}]}))
    assert page.rows[1][0] == "Blue Pan red <b> / a pan"
