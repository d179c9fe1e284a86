from __future__ import annotations

from genrl.compare.html.panels import bands_of, effects, forests, lines, popularity
from genrl.compare.html.svg import looks
from tests.pages import Page, difference, line, notes, table

STYLES = looks(["grpo", "sapo", "sage"], ["most_popular", "item_knn", "sasrec", "align"])


def captions(page: Page) -> list[str]:
    """Titles of the panels; each stands in its figure once more."""
    return [text for text, following in zip(page.texts, page.texts[1:], strict=False) if text == following]


def test_there_is_a_forest_for_each_ranking_and_metric_with_differences() -> None:
    found = forests({"excluded": table(), "raw": table()}, STYLES)
    assert [captions(Page(part)) for part in found] == [
        ["NDCG@10, history excluded"],
        ["Recall@10, history excluded"],
        ["NDCG@10, raw"],
        ["Recall@10, raw"],
    ]
    assert "sage" in Page(found[0]).texts
    assert "sage" not in Page(found[1]).texts  # it has no difference of recall


def test_the_effect_beside_the_verdict_is_not_shown_again() -> None:
    page = Page(effects({"excluded": table()}, "align", STYLES) or "")
    assert captions(page) == ["Recall@10, history excluded"]
    alone = {"k": 10, "lines": {"align": line(0.2), "grpo": line(0.3, 0, difference=difference(0.1))}}
    assert len(forests({"raw": alone}, STYLES)) == 1
    assert effects({"raw": alone}, "align", STYLES) is None


def test_curves_and_match_rates_are_kept_apart_with_bands_over_seeds() -> None:
    learning, matches = bands_of({**notes(), "sage": [{}]})
    assert list(learning) == ["Reward", "Validation NDCG@10"]
    assert list(matches) == ["Match rate of step 1", "Match rate of step 2"]
    assert learning["Reward"] == {row: [(5, 1.5, 1.0, 2.0), (10, 2.5, 2.0, 3.0)] for row in ("grpo", "sapo")}


def test_rows_that_are_given_the_targets_have_no_curves_of_completions() -> None:
    taught = {"train/reward": {5: 5.0}, "train/match/step1": {5: 1.0}, "val/ndcg@10": {5: 0.3}}
    learning, matches = bands_of({**notes(), "ce": [taught]})
    assert {title: "ce" in rows for title, rows in {**learning, **matches}.items()} == {
        "Reward": False,
        "Validation NDCG@10": True,
        "Match rate of step 1": False,
        "Match rate of step 2": False,
    }
    halfway = {**taught, "train/match/step2": {5: 0.5}}
    assert "ce" in bands_of({"ce": [halfway]})[0]["Reward"]


def test_a_legend_names_the_rows_that_have_curves() -> None:
    learning, _ = bands_of({**notes(), "sage": [{}]})
    page = Page(lines(learning, STYLES, "About.") or "")
    assert page.texts[:3] == ["About.", "grpo", "sapo"]
    assert captions(page) == ["Reward", "Validation NDCG@10"]
    assert lines({}, STYLES, "About.") is None


def test_rows_without_a_share_are_not_in_the_scatter() -> None:
    parts = table()
    del parts["lines"]["grpo"]["metrics"]["top1pct_share@10"]
    parts["lines"]["sapo"]["metrics"]["ndcg@10"] = None
    texts = Page(popularity({"raw": parts}, STYLES) or "").texts
    assert {"most popular", "item-kNN", "sasrec", "align", "sage"} <= set(texts)
    assert not {"grpo", "sapo"} & set(texts)
    assert popularity({"raw": {"k": 5, "lines": table()["lines"]}}, STYLES) is None
