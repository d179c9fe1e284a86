import re
from dataclasses import replace
from typing import Any

import pytest

from genrl.compare.page import SECTIONS, draw, groups, html, markdown
from genrl.compare.record import Choice, Cost, Expense, Line, Point, Report, Request, Table
from genrl.plots import DARK, LIGHT
from tests.pages import Page, difference, line, notes, report, row, samples, table

HOSTILE = "<script>alert(1)</script>&\"'"
EVERYTHING = [title for title in SECTIONS if title not in ("Does thinking pay?", "Tied and untied targets")]
"""Sections of every report; the others are there on request."""


def of(**lines: Line) -> Report:
    """A report of one table."""
    return report(tables={"test": {"raw": table(**lines)}})


@pytest.fixture(scope="module")
def whole() -> str:
    return html(report(), notes(), samples())


@pytest.fixture(scope="module")
def page(whole: str) -> Page:
    return Page(whole)


def plain(found: Report, **further: Any) -> Page:
    """The page without curves."""
    return Page(html(replace(found, **further), {}, {}))


def heads(page: Page) -> list[str]:
    """Titles of the sections, as the links at the top name them."""
    return [text for text in page.texts if text in EVERYTHING][: len(page.named("section"))]


def test_a_page_holds_every_section_in_its_order_and_links_lead_to_them(page):
    assert heads(page) == EVERYTHING
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"] for attributes in page.named("a")]
    assert links == [f"#{section['id']}" for section in page.named("section")]
    assert {section["aria-labelledby"] for section in page.named("section")} <= set(names)


def test_tied_and_untied_targets_have_a_table_of_their_own_on_request() -> None:
    apart = {"tied": {"ndcg@10": 0.125, "recall@10": 0.25}, "untied": {"ndcg@10": 0.5, "recall@10": None}}
    lines = {"most_popular": line(0.1), "align": line(0.2, ties=apart)}
    asked = {"excluded": replace(table(**lines), ties={"tied": 250, "untied": 1350}), "raw": table(**lines)}
    found = report(tables={"test": asked})
    page, said = plain(found), "tied: the 250 users whose target has the time of the interaction before it; untied: the"
    assert "Test, history excluded: tied and untied targets" in page.text
    assert "Test, raw: tied and untied targets" not in page.text
    assert page.row("row", 2) == ["row", "N@10, 250 tied", "R@10, 250 tied", "N@10, 1,350 untied", "R@10, 1,350 untied"]
    assert page.row("align", 2) == ["align", "0.1250", "0.2500", "0.5000", "–"]
    assert page.row("most popular", 2) == ["most popular", "–", "–", "–", "–"]
    assert said in page.text
    text = markdown(found)
    assert "### test, history excluded: tied and untied targets\n\n" + said in text
    assert "| align | 0.1250 | 0.2500 | 0.5000 | - |" in text
    assert "tied" not in markdown(report())


def test_a_page_needs_nothing_from_elsewhere(whole: str, page: Page) -> None:
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data", "action", "xlink:href"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe", whole)


def test_the_same_report_gives_the_same_bytes(whole):
    assert html(report(), notes(), samples()) == whole


def test_every_row_and_number_of_a_table_is_there(page):
    for part in range(4):  # test and validation, each history excluded and raw
        assert page.row("grpo", part)[2].startswith("0.2375")
        for name in ("most popular", "item-kNN", "sasrec", "align", "sapo", "sage"):
            assert page.row(name, part)
    captions = re.findall(r"(Test|Validation), (history excluded|raw) \(", page.text)
    assert captions == [
        *(("Test", "history excluded"), ("Test", "raw")),
        *(("Validation", "history excluded"), ("Validation", "raw")),
    ]
    assert "Test, raw (600 users, 30 with a cold target)" in page.text
    assert page.rows[0] == [
        *(
            "row",
            "seeds",
            "NDCG@10",
            "minus align",
            "recall@10",
            "cold recall@10",
            "mean reciprocal rank",
            "entropy, bits",
            "coverage",
        ),
        "top 1%",
    ]
    assert page.row("grpo") == [
        *("grpo", "2", "0.2375 [0.2275, 0.2475]", "+0.0375 ▲ [+0.0175, +0.0575] +18.7%, p = .001"),
        *("0.4750 ▲ +0.0750 [+0.0550, +0.0950]", "–", "0.2375", "1.5000", "0.2500", "0.1187"),
    ]
    assert page.row("align")[:4] == ["align", "–", "0.2000", "–"]
    assert page.row("item-kNN")[:4] == ["item-kNN", "–", "0.2250", "–"]
    assert page.row("sapo")[3].startswith("−0.0250 ▼")
    assert page.row("sage")[3].startswith("+0.0050 ○")


def test_heads_and_signs_can_be_told(page):
    labels = {attributes.get("aria-label") for attributes in page.named("span")}
    assert {"higher", "lower", "not told apart"} <= labels
    scopes = [attributes["scope"] for attributes in page.named("th")]
    assert scopes.count("rowgroup") == 4 * 4
    assert scopes.count("col") >= 4 * 9


def test_rows_are_grouped_by_what_they_are():
    assert groups(report(), table()) == {
        "Reference lines": ["most_popular", "item_knn"],
        "Baselines": ["sasrec"],
        "Start": ["align"],
        "Objectives": ["grpo", "sapo", "sage"],
    }


def test_the_best_value_of_a_quality_is_bold_unless_all_are_the_same():
    def bold(found: Report) -> int:
        text = html(found, {}, {})
        return text[text.index('id="results"') : text.index('id="quality')].count("<strong>")

    assert bold(of()) == 2  # NDCG and recall
    assert bold(of(a=line(0.2), b=line(0.2))) == 0


def test_the_verdict_says_what_the_numbers_allow(page):
    verdict = page.text[page.text.index("Of 4 rows compared") : page.text.index("Read with care")]
    assert verdict.index("Higher than align") < verdict.index("grpo +0.0375 (+18.7%)")
    assert verdict.index("Lower than align") < verdict.index("sapo −0.0250")
    assert verdict.index("Not told apart from align") < verdict.index("sage +0.0050")
    assert "best reference line is item-kNN with 0.2250" in verdict
    assert "sasrec and sage: One training seed." in page.text


def test_pairs_of_rows_have_a_table(page):
    assert page.row("sapo minus grpo") == [
        "sapo minus grpo",
        "−0.0625 ▼ [−0.0825, −0.0425] p = .002",
        "−0.1250 ○ [−0.1450, −0.1050] p = .100",
    ]
    text = markdown(report())
    assert "### test, raw: pairs of rows\n\n|  | N@10 | p | R@10 | p |" in text
    assert cells(text, "sapo minus grpo")[0] == [
        *("sapo minus grpo", "-0.0625 [-0.0825, -0.0425]", "0.002", "-0.1250 [-0.1450, -0.1050]", "0.100")
    ]


def test_warnings_on_other_metrics_are_folded():
    found = {"ndcg@10": difference(0.1), "recall@10": difference(0.2, warnings=["Noisy."])}
    page = plain(of(align=line(0.2), grpo=line(0.3, 0, differences=found)))
    assert "recall@10: 1 grpo: Noisy." in page.text


def test_user_texts_are_escaped_wherever_they_come_from():
    lines = {HOSTILE: line(0.3, 0, differences={"ndcg@10": difference(0.1, warnings=[HOSTILE])}), "align": line(0.2)}
    written = {"item": HOSTILE, "components": {HOSTILE: 1.0}, "thinking": [HOSTILE]}
    completion = {**samples()["grpo"][0]["completions"][0], **written}
    sample = {"history": [HOSTILE], "target": HOSTILE, "target_codes": [1], "completions": [completion]}
    text = html(
        report(
            experiment=HOSTILE,
            data={"name": HOSTILE, "fingerprint": HOSTILE},
            unfinished=[HOSTILE],
            notes=[HOSTILE],
            commands={"a": HOSTILE},
            versions={HOSTILE: HOSTILE},
            choices={HOSTILE: Choice(HOSTILE, [Point("a", {HOSTILE: HOSTILE}, 0.1)], None)},
            cost={HOSTILE: Cost(1.0, 1.0)},
            rows={HOSTILE: row(title=HOSTILE, pieces=HOSTILE, paper=HOSTILE, rewards={HOSTILE: {HOSTILE: HOSTILE}})},
            tables={"test": {"raw": Table(10, 6, None, lines)}},
        ),
        {HOSTILE: notes()["grpo"]},
        {HOSTILE: [sample]},
    )
    assert "<script" not in text
    page = Page(text)
    assert page.texts.count(HOSTILE) >= 15
    assert page.row(HOSTILE)[2].startswith("0.3000")


def test_sections_without_content_are_left_out():
    bare = replace(of(align=line(0.2), grpo=line(0.3, 0)), choices={}, rows={}, cost={})
    page = Page(html(bare, {"align": [], "grpo": [{}]}, {"grpo": []}))
    assert heads(page) == [
        *("Verdict", "Results", "Quality and popularity", "Commands and versions", "How to read the numbers"),
    ]
    assert "Nothing is compared: align is not finished, or nothing else is." in page.text


def test_a_report_of_baselines_alone_is_shown():
    page = plain(of(item_knn=line(0.2), sasrec=line(0.3, 0)), shared={}, baseline="item_knn", choices={})
    assert "Nothing is compared" in page.text
    assert "start of all objectives none" in page.text


def test_a_partial_report_says_so_first():
    text = plain(of(), unfinished=["sapo-s1", "sage-s0"]).text
    assert text.index("Partial: not finished are sapo-s1, sage-s0") < text.index("Verdict")
    assert "Complete: all runs are finished" in plain(of()).text
    assert "All runs found here are finished" in plain(of(), planned=False).text


def captions(page: Page) -> list[str]:
    """Titles of the panels; each stands in its figure once more."""
    return [text for text, following in zip(page.texts, page.texts[1:], strict=False) if text == following != "–"]


def test_figures_can_be_told_and_scale_with_the_page(page):
    figures = [svg for svg in page.named("svg") if svg.get("role") == "img"]
    assert captions(page) == [
        *("NDCG@10, history excluded", "Recall@10, history excluded", "NDCG@10, raw", "Recall@10, raw"),
        *("Reward", "Validation NDCG@10", "Match rate of step 1", "Match rate of step 2"),
        *("Test, history excluded", "Test, raw"),
    ]
    assert len(figures) == len(page.named("desc")) == len(captions(page))
    assert all("viewbox" in svg and "width" not in svg for svg in figures)
    assert all(svg["aria-hidden"] == "true" for svg in page.named("svg") if svg.get("role") != "img")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "sapo: 1.5 at step 5, 2.5 at step 10" in page.text


def test_a_legend_names_the_rows_that_have_curves(page):
    legend = page.texts[page.texts.index("Reward") - 2 : page.texts.index("Reward")]
    assert legend == ["grpo", "sapo"]
    classes = [svg["class"] for svg in page.named("svg") if svg.get("width") == "30"]
    assert classes == ["swatch colour0", "swatch colour1"] * 2


def test_rows_without_a_share_are_not_in_the_scatter():
    parts = table()
    del parts.lines["grpo"].metrics["top1pct_share@10"]
    parts.lines["sapo"].metrics["top1pct_share@10"] = None
    bare = {name: replace(one, differences={}) for name, one in parts.lines.items() if name != "grpo"}
    texts = plain(of(**bare)).texts
    told = next(text for text in texts if "share of places that the top 1% of items take 0" in text)
    assert [part.partition(":")[0] for part in told.split("; ")] == [
        *("most popular", "item-kNN", "sasrec", "align", "sage"),
    ]


def test_the_row_with_most_completions_is_open_at_first():
    (sample,) = samples()["grpo"]
    longer = {**sample, "completions": 2 * sample["completions"]}
    page = Page(html(report(), {}, {"sage": [sample], "grpo": [longer], "sapo": [sample]}))
    folded = [details for details in page.named("details") if "open" in details]
    text = page.text[page.text.index("Worked examples", page.text.index("Worked examples") + 1) :]
    assert len(folded) == 1
    assert page.named("details").index(folded[0]) == 2  # after the folded validation tables and sage
    assert text.index("sage") < text.index("grpo") < text.index("sapo")


def test_tables_scroll_inside_their_own_container(page):
    boxes = [div for div in page.named("div") if div.get("class") == "scroll"]
    assert len(boxes) == len(page.named("table"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def example(sample: dict[str, Any]) -> Page:
    page = Page(html(of(), {}, {"grpo": [sample]}))
    page.rows = page.rows[next(place for place, one in enumerate(page.rows) if one[0] == "completion") :]
    return page


def test_an_example_shows_what_was_written_how_it_was_rewarded_and_where_it_is_pushed():
    page = example(samples()["grpo"][0])
    assert "history Red Shoe → Red Pan target Green Pan 0 8 7" in page.text
    assert page.rows[0] == [
        *("completion", "reward", "exact match", "level match", "step 1", "step 2", "step 3", "log-prob"),
    ]
    assert page.rows[1] == ["Blue Pan", "2.00", "0.00", "2.00", "0 +1.50", "8 −0.25", "6 0", "−4.50"]
    classes = [attributes["class"] for attributes in page.named("span") if "code" in (attributes.get("class") or "")]
    assert classes == ["code", "code", "code", "code hit", "code hit", "code"]  # first the target itself
    cells = [a for a in page.named("td") if "push" in (a.get("class") or "")]
    assert [(cell["class"], cell["style"]) for cell in cells] == [
        ("push more", "--strength:1.00"),
        ("push less", "--strength:0.17"),
        ("push", "--strength:0.00"),
    ]


def test_odd_samples_are_shown_too():
    sample = samples()["grpo"][0]
    (completion,) = sample["completions"]
    longer = {**completion, "codes": [0, 8, 7, 1], "advantages": [0.0, 0.0], "drawn": 3}
    thought = {**completion, "thinking": ["red <b>", "a pan"], "drawn": 1}
    page = example({**sample, "history": [], "completions": [longer, thought]})
    assert "history (empty)" in page.text
    assert page.rows[1][0] == "Blue Pan (drawn 3 times)"
    assert page.rows[1][4:8] == ["0 0", "8 0", "7 0", "1 0"]
    assert page.rows[2][0] == "Blue Pan red <b> / a pan"
    assert page.rows[2][4:] == ["0 +1.50", "8 −0.25", "6 0", "", "−4.50"]  # cells stay below their heads
    assert "No completion was kept." in Page(html(of(), {}, {"grpo": [{**sample, "completions": []}]})).text


def test_costs_choices_and_origin_are_shown(page):
    costs = page.rows[next(place for place, one in enumerate(page.rows) if "peak memory" in one) :][:3]
    assert costs == [
        ["row", "steps", "prompts", "completions", "tokens", "seconds", "peak memory"],
        ["align", "–", "–", "–", "–", "12.3 s", "100 MiB"],
        ["grpo", "30", "960", "15,360", "46,080", "24.0 s", "1,200 MiB"],
    ]
    bars = [span["style"] for span in page.named("span") if (span.get("style") or "").startswith("width")]
    assert bars == ["width:51.4%", "width:8.3%", "width:100.0%", "width:100.0%"]
    for points in (
        ["row", "point of the grid", "valid raw ndcg@10", ""],
        ["grpo", "lr 1e-5", "not finished", ""],
        ["grpo", "lr 1e-3", "0.5000", "✓ chosen"],
    ):
        assert points in page.rows
    text = page.text.replace(" :", ":")
    assert "grpo: A Title (arXiv:1) Rewards: exact_match weight=1.0. Pieces(one=1)" in text
    assert "sasrec: SASRec layers = 2" in text
    for part in ("python -m genrl fit --seed 0", "python -m genrl fit --seed 1", "f00d", "cafe", "8 x 8", "align-1"):
        assert part in text
    assert "8 codes, fingerprint not kept" in plain(of(), sid={"codes": [8], "fingerprint": None}).text


def test_what_thinking_costs_has_a_section_where_it_was_asked():
    expense = Expense(25, {"align": 1000, "activate": 50, "rl": 4000}, 400, Request(61.5, 2_000_000, 2.5))
    spent = {"sapo": expense, "grpo": replace(expense, request=Request(50.0, 10, 5.0))}
    page = plain(of(), thinking=spent)
    assert "Test rows, raw." in markdown(replace(of(), thinking=spent))
    both = report(thinking=spent)
    words = both.tables["test"]["excluded"].lines["grpo"].differences["ndcg@10"]
    both.tables["test"]["excluded"].lines["grpo"].differences["ndcg@10"] = replace(words, effect=0.0125)
    told = markdown(both)
    assert "Test rows, history excluded." in told  # as the verdict
    assert "**grpo**: +0.0125" in told
    assert page.row("grpo") == ["grpo", "1,050", "4,000", "400", "25", "50.0", "10", "5.0 (2.00 x)"]


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_can_be_read_and_marks_be_seen(colours):
    assert (round(contrast("#000000", "#ffffff"), 2), round(contrast("#777777", "#ffffff"), 2)) == (21.0, 4.48)
    for background in ("paper", "panel"):
        for name in ("ink", "muted", "accent"):
            assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
    for name in ("grey", "up", "down", *(name for name in colours if name.startswith("colour"))):
        assert contrast(colours[name], colours["paper"]) >= 2.2, name


def test_every_colour_that_is_used_is_given_and_only_screens_become_dark(whole):
    sheet = whole[whole.index("<style>") : whole.index("</style>")]
    assert set(re.findall(r"var\(--([a-z0-9]+)\)", whole)) - {"mark", "strength"} <= LIGHT.keys()
    assert LIGHT.keys() == DARK.keys()
    assert sheet.count("{") == sheet.count("}")
    assert sheet.count("prefers-color-scheme") == sheet.count("@media screen and (prefers-color-scheme:dark)") == 1


def cells(text: str, name: str) -> list[list[str]]:
    rows = [one for one in text.splitlines() if one.startswith(f"| {name} |")]
    return [[cell.strip() for cell in one[1:-1].split("|")] for one in rows]


def few(cold: float | None = None) -> Report:
    """A report whose differences warn, and of cold recall if wanted."""
    found = {"ndcg@10": difference(0.01, 0.0001, warnings=["Few."])}
    found["recall@10"] = difference(0.5, 0.5, relative=None, warnings=["Few.", "Noisy."])
    found |= {} if cold is None else {"cold_recall@10": difference(cold)}
    return of(align=line(0.2), item_knn=line(0.25), grpo=line(0.25, 0, 1, differences=found))


def test_markdown_shows_mean_interval_and_difference():
    text = markdown(few())
    assert "## test, raw (600 users, 30 with a cold target)" in text
    assert "Ent: entropy of the categories in each list, to base 2 (bits)" in text
    assert "Cold: recall of the 30 users whose target is a cold item" in text
    head = (
        "|  | seeds | N@10 | N@10 minus align | relative | p | R@10 | MRR@10 | Ent@10 | Cold@10 | Cov@10 | Top1%@10 |"
    )
    assert f"{head}\n|---|" in text
    assert cells(text, "grpo")[0] == [
        *(
            "grpo",
            "2",
            "0.2500 [0.2400, 0.2600]",
            "+0.0100 [-0.0100, +0.0300]",
            "+5.0%",
            "<.001",
            "0.5000",
            "0.2500",
            "1.5000",
        ),
        *("-", "0.2500", "0.1250"),
    ]
    assert cells(text, "item-kNN") == [
        ["item-kNN", "", "0.2500", "", "", "", "0.5000", "0.2500", "1.5000", "-", "0.2500", "0.1250"],
    ]
    assert "- grpo, N@10: Few." in text
    assert markdown(of(**{"a|b": line(0.25, 0)})).count("| a\\|b | 1 | 0.2500") == 1  # a bar begins no cell


def test_markdown_has_a_table_of_recall_and_cold_recall():
    text = markdown(few(cold=-0.25))
    head = "### test, raw: recall and cold recall against align\n\nOf 600 users, 30 have a cold target.\n\n"
    assert f"{head}|  | R@10 minus align | relative | p | Cold@10 minus align | relative | p |" in text
    assert cells(text, "grpo")[1] == [
        *("grpo", "+0.5000 [+0.4800, +0.5200]", "-", "0.500", "-0.2500 [-0.2700, -0.2300]", "-125.0%", "0.001")
    ]
    assert len(cells(text, "item-kNN")) == 1  # it has no difference
    assert "- grpo, R@10: Noisy." in text
    assert "R@10: Few." not in text  # said of NDCG already
    text = markdown(few())
    assert "### test, raw: recall against align\n" in text
    assert "Of 600 users, 30 have a cold target. Too few for a difference of cold recall." in text
    unknown = replace(table(**few().tables["test"]["raw"].lines), cold_rows=None)
    assert "a cold target" not in markdown(report(tables={"test": {"raw": unknown}}))  # a note says so


def test_markdown_shows_notes_costs_choices_and_origin():
    text = markdown(report(notes=["Something is missing."], unfinished=["a", "b"]))
    head = (
        "# Comparison: toy\n\n**Partial**: 2 run(s) are not finished: a, b.\n\n**Note**: Something is missing.\n\n`N`"
    )
    assert text.startswith(head)
    assert "| align | 12.3 | 100 |  |\n| grpo | 24.0 | 1200 | 46,080 |\n" in text
    assert "| grpo | lr 1e-5 | not finished |  |\n| grpo | lr 1e-3 | 0.5000 | chosen |\n" in text
    assert "data toy f00d; Semantic IDs 8 x 8, cafe; align-1\n\n- sasrec: SASRec\n- grpo: A Title (arXiv:1)\n" in text
    assert "- sage: sage (arXiv:1)\n\npython 3, torch 2\n\n```bash\npython -m genrl fit --seed 0\n" in text
    assert "![curves](report.png)" in text
    assert "Chosen on validation" not in markdown(report(choices={}))
    assert "report.png" not in markdown(report(rows={"sasrec": row("baseline")}))


def test_a_picture_is_drawn_of_what_was_noted(tmp_path):
    draw(notes(), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    draw({"grpo": [{}, {"train/loss": {1: 1.0}}]}, tmp_path / "none.png")
    assert [path.name for path in tmp_path.glob("*")] == ["report.png"]


def test_numbers_inside_pools_say_so_at_every_table():
    inside = replace(table(), pool={"size": 100.0, "ceiling": 0.875})
    found = report(tables={"test": {"excluded": inside, "raw": inside}})
    said = "(600 users, 30 with a cold target; pools of 100, ceiling 0.8750)"
    assert markdown(found).count(said) >= 2
    page = html(found, {}, {})
    assert page.count(said) >= 2
    assert "Every row is ranked inside candidate pools" in page
    assert "against the whole catalogue" not in page
    assert "against the whole catalogue" in html(report(), {}, {})
