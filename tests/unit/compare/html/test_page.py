from __future__ import annotations

import json
import re

from genrl.compare.html.page import html
from tests.pages import Page, difference, line, notes, report, samples, table

EVERYTHING = [
    *("Verdict", "Results", "Other effects", "Learning curves", "Match rate of each step", "Quality and popularity"),
    *("Cost", "Worked examples", "Chosen on validation", "Objectives and rewards", "Commands and versions"),
    "How to read the numbers",
]
HOSTILE = "<script>alert(1)</script>&\"'"


def heads(page: Page) -> list[str]:
    """Titles of the sections, as the links at the top name them."""
    return [text for text in page.texts if text in EVERYTHING][: len(page.named("section"))]


def test_a_page_holds_every_section_in_its_order() -> None:
    page = Page(html(report(), notes(), samples()))
    assert heads(page) == EVERYTHING


def test_links_lead_to_sections_and_names_are_unique() -> None:
    page = Page(html(report(), notes(), samples()))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"] for attributes in page.named("a")]
    assert links == [f"#{section['id']}" for section in page.named("section")]
    assert {section["aria-labelledby"] for section in page.named("section")} <= set(names)


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = html(report(), notes(), samples())
    for _, attributes in Page(text).elements:
        assert not {"src", "srcset", "data", "action", "xlink:href"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe", text)


def test_the_same_report_gives_the_same_bytes() -> None:
    copy = json.loads(json.dumps(report()))
    assert html(report(), notes(), samples()) == html(copy, notes(), samples())


def test_every_row_and_number_of_a_table_is_there() -> None:
    page = Page(html(report(), notes(), samples()))
    for part in range(4):  # test and validation, each history excluded and raw
        assert page.row("grpo", part)[2].startswith("0.2375")
        for name in ("most popular", "item-kNN", "sasrec", "align", "sapo", "sage"):
            assert page.row(name, part)
    captions = re.findall(r"(Test|Validation), (history excluded|raw) \(", page.text)
    assert captions == [
        *(("Test", "history excluded"), ("Test", "raw")),
        *(("Validation", "history excluded"), ("Validation", "raw")),
    ]


def test_the_verdict_says_what_the_numbers_allow() -> None:
    text = Page(html(report(), {}, {})).text
    verdict = text[text.index("Of 4 rows compared") : text.index("Read with care")]
    assert verdict.index("Higher than align") < verdict.index("grpo +0.0375 (+18.7%)")
    assert verdict.index("Lower than align") < verdict.index("sapo −0.0250")
    assert verdict.index("Not told apart from align") < verdict.index("sage +0.0050")
    assert "best reference line is item-kNN with 0.2250" in verdict
    assert "sasrec and sage: One training seed." in text


def test_user_texts_are_escaped_wherever_they_come_from() -> None:
    lines = {HOSTILE: line(0.3, 0, differences={"ndcg@10": difference(0.1, warnings=[HOSTILE])}), "align": line(0.2)}
    completion = {**samples()["grpo"][0]["completions"][0], "item": HOSTILE, "components": {HOSTILE: 1.0}}
    sample = {"history": [HOSTILE], "target": HOSTILE, "target_codes": [1], "completions": [completion]}
    choice = {"metric": HOSTILE, "points": [{"point": {HOSTILE: HOSTILE}, "score": 0.1}], "chosen": None}
    text = html(
        report(
            experiment=HOSTILE,
            data={"name": HOSTILE, "fingerprint": HOSTILE},
            unfinished=[HOSTILE],
            notes=[HOSTILE],
            commands={"a": HOSTILE},
            versions={HOSTILE: HOSTILE},
            choices={HOSTILE: choice},
            cost={HOSTILE: {"seconds": 1.0, "peak_mib": 1.0}},
            rows={HOSTILE: {"kind": "objective", "title": HOSTILE, "options": {}, "pieces": HOSTILE}},
            tables={"test": {"raw": {"k": 10, "users": 6, "lines": lines}}},
        ),
        {HOSTILE: notes()["grpo"]},
        {HOSTILE: [sample]},
    )
    assert "<script" not in text
    page = Page(text)
    assert page.texts.count(HOSTILE) >= 15
    assert page.row(HOSTILE)[2].startswith("0.3000")


def test_sections_without_content_are_left_out() -> None:
    lines = {"align": line(0.2), "grpo": line(0.3, 0)}
    bare = report(choices={}, rows={}, cost={}, tables={"test": {"raw": {"k": 10, "users": 6, "lines": lines}}})
    page = Page(html(bare, {"align": [], "grpo": [{}]}, {"grpo": []}))
    assert heads(page) == [
        *("Verdict", "Results", "Quality and popularity", "Commands and versions", "How to read the numbers"),
    ]
    assert "Nothing is compared: align is not finished, or nothing else is." in page.text


def test_a_report_of_baselines_alone_is_shown() -> None:
    parts = table()
    parts["lines"] = {"item_knn": line(0.2), "sasrec": line(0.3, 0)}
    found = report(shared={}, baseline="item_knn", tables={"test": {"raw": parts}}, choices={})
    assert "Nothing is compared" in Page(html(found, {}, {})).text


def test_a_partial_report_says_so_first() -> None:
    text = Page(html(report(unfinished=["sapo-s1", "sage-s0"]), {}, {})).text
    assert text.index("Partial: not finished are sapo-s1, sage-s0") < text.index("Verdict")
    assert "Complete: all runs are finished" in Page(html(report(), {}, {})).text


def test_curves_are_drawn_of_what_was_noted() -> None:
    page = Page(html(report(), notes(), {}))
    titles = [
        text for text in page.texts if text in ("Reward", "Validation NDCG@10", "KL from the reference policy, nats")
    ]
    assert list(dict.fromkeys(titles)) == ["Reward", "Validation NDCG@10"]
    assert "sapo: 1.5 at step 5, 2.5 at step 10" in page.text


def test_figures_can_be_told_and_scale_with_the_page() -> None:
    page = Page(html(report(), notes(), samples()))
    figures = [svg for svg in page.named("svg") if svg.get("role") == "img"]
    assert len(figures) == len(page.named("desc")) == 4 + 4 + 2  # effects, curves, scatter plots
    assert all("viewbox" in svg and "width" not in svg for svg in figures)
    assert all(svg["aria-hidden"] == "true" for svg in page.named("svg") if svg.get("role") != "img")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")


def test_the_row_with_most_completions_is_open_at_first() -> None:
    (sample,) = samples()["grpo"]
    longer = {**sample, "completions": 2 * sample["completions"]}
    page = Page(html(report(), {}, {"sage": [sample], "grpo": [longer], "sapo": [sample]}))
    folded = [details for details in page.named("details") if "open" in details]
    text = page.text[page.text.index("Worked examples", page.text.index("Worked examples") + 1) :]
    assert len(folded) == 1
    assert page.named("details").index(folded[0]) == 2  # after the folded validation tables and sage
    assert text.index("sage") < text.index("grpo") < text.index("sapo")


def test_tables_scroll_inside_their_own_container() -> None:
    page = Page(html(report(), notes(), samples()))
    boxes = [div for div in page.named("div") if div.get("class") == "scroll"]
    assert len(boxes) == len(page.named("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
