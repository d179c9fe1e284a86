from __future__ import annotations

from genrl.compare.html.origin import choices, cost, objectives, origin, reading
from genrl.compare.html.svg import looks
from tests.pages import Page, report


def test_costs_are_shown_with_what_was_spent() -> None:
    styles = looks(["grpo"], [])
    page = Page(cost(report(), styles) or "")
    assert page.rows == [
        ["row", "steps", "prompts", "completions", "tokens", "seconds", "peak memory"],
        ["align", "–", "–", "–", "–", "12.3 s", "100 MiB"],
        ["grpo", "30", "960", "15,360", "46,080", "24.0 s", "1,200 MiB"],
    ]
    assert [bar["width"] for bar in page.named("rect")] == ["30.85", "4.98", "60", "60"]
    older = report()
    del older["rows"]
    assert Page(cost(older, styles) or "").rows[0] == ["row", "seconds", "peak memory"]
    assert cost(report(cost={}), styles) is None


def test_choices_are_shown_with_their_scores_on_validation() -> None:
    page = Page(choices(report()["choices"]) or "")
    assert page.rows == [
        ["row", "point of the grid", "valid raw ndcg@10", ""],
        ["grpo", "lr 1e-5", "not finished", ""],
        ["grpo", "lr 1e-3", "0.5000", "✓ chosen"],
    ]
    assert choices({}) is None


def test_objectives_say_their_pieces_and_baselines_their_options() -> None:
    text = Page(objectives(report()) or "").text
    assert "grpo: A Title (arXiv:1) Rewards: exact_match weight=1.0. Pieces(one=1)" in text.replace(" :", ":")
    assert "sasrec: SASRec layers = 2" in text.replace(" :", ":")
    assert objectives({}) is None


def test_commands_versions_and_fingerprints_are_there() -> None:
    text = Page(origin(report())).text
    for part in ("python -m genrl fit --seed 0", "python -m genrl fit --seed 1", "f00d", "cafe", "8 x 8", "align-1"):
        assert part in text
    text = Page(origin(report(shared={}, sid={"codes": [8], "fingerprint": None}))).text
    assert "8 codes, fingerprint not kept" in text
    assert "start of all objectives none" in text


def test_the_numbers_are_explained() -> None:
    assert {"NDCG", "Holm", "seeds"} <= set(Page(reading()).text.replace(",", " ").replace("'s", " ").split())
