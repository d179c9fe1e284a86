from __future__ import annotations

from genrl.compare.html.results import groups, results
from genrl.compare.html.svg import looks
from tests.pages import Page, report, table


def page_of(parts: dict[str, object]) -> Page:
    return Page(
        results(
            report(), parts, "Test", looks(["grpo", "sapo", "sage"], ["most_popular", "item_knn", "sasrec", "align"])
        )
    )


def test_rows_are_grouped_by_what_they_are() -> None:
    lines = table()["lines"]
    assert groups(report(), lines) == {
        "Reference lines": ["most_popular", "item_knn"],
        "Baselines": ["sasrec"],
        "Start": ["align"],
        "Objectives": ["grpo", "sapo", "sage"],
    }
    assert groups({}, {"grpo": lines["grpo"]}) == {"Objectives": ["grpo"]}


def test_a_row_shows_every_number() -> None:
    page = page_of(table())
    assert "Test (600 users, 30 with a cold target)" in page.text
    assert page.rows[0] == [
        *("row", "seeds", "NDCG@10", "minus align", "recall@10", "cold recall@10", "entropy, bits", "coverage"),
        "top 1%",
    ]
    assert page.row("grpo") == [
        *("grpo", "2", "0.2375 [0.2275, 0.2475]", "+0.0375 ▲ [+0.0175, +0.0575] +18.7%, p = .001"),
        *("0.4750 ▲ +0.0750 [+0.0550, +0.0950]", "–", "1.5000", "0.2500", "0.1187"),
    ]
    assert page.row("align")[:4] == ["align", "–", "0.2000", "–"]
    assert page.row("item-kNN")[:4] == ["item-kNN", "–", "0.2250", "–"]
    assert page.row("sapo")[3].startswith("−0.0250 ▼")
    assert page.row("sage")[3].startswith("+0.0050 ○")


def test_signs_have_words() -> None:
    labels = {attributes.get("aria-label") for attributes in page_of(table()).named("span")}
    assert {"higher", "lower", "not told apart"} <= labels


def test_the_best_value_of_a_quality_is_bold_unless_all_are_the_same() -> None:
    parts = table()
    assert results(report(), parts, "", looks([], parts["lines"])).count("<strong>") == 2  # NDCG and recall
    same = {**parts, "lines": {row: parts["lines"]["align"] for row in ("a", "b")}}
    assert "<strong>" not in results(report(), same, "", looks([], same["lines"]))


def test_a_table_of_an_older_report_does_not_count_cold_rows() -> None:
    parts = table()
    del parts["cold_rows"]
    assert "Test (600 users)" in page_of(parts).text


def test_heads_say_what_they_head() -> None:
    page = page_of(table())
    scopes = [attributes["scope"] for attributes in page.named("th")]
    assert scopes.count("col") == 9
    assert scopes.count("rowgroup") == 4
    assert scopes.count("row") == 7
