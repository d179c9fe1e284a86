from dataclasses import replace

from genrl.compare.quantities import capital
from genrl.compare.record import Pair, Table
from genrl.compare.verdict import direction, lead, listed, named, p_text, remarks, statements, warnings
from genrl.metrics.comparison import signed
from tests.pages import difference, line, table


def changed(row: str, metric: str = "ndcg@10", **further: object) -> Table:
    """The table with another difference of a row."""
    found = table()
    own = found.lines[row]
    own.differences[metric] = replace(own.differences[metric], **further)
    return found


def test_a_row_differs_only_after_correction():
    assert direction(difference(0.1, p_holm=0.049)) == "higher"
    assert direction(difference(-0.1, p_holm=0.049)) == "lower"
    assert direction(difference(0.1, p_holm=0.05)) == "unclear"


def test_the_lead_counts_rows_by_what_can_be_said():
    assert lead(table(), "align") == (
        "Of 4 rows compared with align, 1 scores higher, 1 scores lower and 2 cannot be told apart."
    )
    one = line(0.21, 0, differences={"ndcg@10": difference(0.01, p_holm=0.5)})
    align = line(0.2)
    assert lead(table(align=align, a=one), "align") == "No difference to align is shown for the one row."
    assert lead(table(align=align, a=one, b=one), "align") == "No difference to align is shown for any of the 2 rows."
    assert lead(table(align=align), "item_knn").startswith("Nothing is compared: item-kNN")


def test_statements_are_in_the_order_of_effects_with_all_numbers():
    found = statements(table(), "align")
    assert [(one.row, one.direction) for one in found] == [
        ("grpo", "higher"),
        ("sasrec", "unclear"),
        ("sage", "unclear"),
        ("sapo", "lower"),
    ]
    assert found[0].text == "+0.0375 (+18.7%), interval [+0.0175, +0.0575], p = .001; 0.2375 against 0.2000."


def test_an_interval_that_leaves_out_zero_is_explained_if_correction_says_otherwise():
    close = {"ndcg@10": difference(0.0375, p_holm=0.06, relative=None)}
    (one,) = statements(table(a=line(0.2, 0, differences=close)), "b")
    assert one.direction == "unclear"
    assert one.text == (
        "+0.0375, interval [+0.0175, +0.0575], p = .060; 0.2000. "
        "The interval leaves out zero, but not by enough for so many rows."
    )


def test_a_difference_of_one_seed_is_not_said_of_the_objective():
    parts = table()
    assert "seed" not in lead(parts, "align")
    for row in ("grpo", "sage"):
        differences = parts.lines[row].differences
        differences |= {metric: replace(found, seeds_covered=False) for metric, found in differences.items()}
    assert lead(parts, "align").endswith(
        "told apart. Behind 1 of these differences stands one training seed: other seeds may show something else."
    )
    texts = {one.row: one.text for one in statements(parts, "align")}
    assert texts["grpo"].endswith("against 0.2000. One training seed: other seeds may show something else.")
    assert not any("seed" in texts[row] for row in ("sapo", "sage"))  # nothing is claimed of sage
    assert "Recall@10: higher for grpo (one seed)." in list(remarks({"raw": parts}, "raw", "align"))


def test_the_best_reference_line_is_named_whatever_the_verdict():
    parts = table()
    first = next(remarks({"excluded": parts}, "excluded", "align"))
    assert first == "The best reference line is item-kNN with 0.2250. grpo scores above it (means, not tested)."
    parts.lines["item_knn"] = line(0.9)
    assert "No trained row reaches it" in next(remarks({"excluded": parts}, "excluded", "align"))
    parts.lines["item_knn"] = line(0.1)
    assert "Every trained row scores above it" in next(remarks({"excluded": parts}, "excluded", "align"))
    del parts.lines["item_knn"], parts.lines["most_popular"]
    assert "reference line" not in " ".join(remarks({"excluded": parts}, "excluded", "align"))


def test_other_rankings_and_metrics_are_remarked():
    found = list(remarks({"excluded": table(), "raw": table()}, "excluded", "align"))
    assert found[3:] == ["In raw rankings the result is the same for every row.", "Recall@10: higher for grpo."]
    found = list(remarks({"excluded": table(), "raw": changed("grpo", p_holm=0.7)}, "excluded", "align"))
    assert found[3] == "In raw rankings the result is another for some rows: grpo is not told apart."


def test_pairs_of_rows_are_told_by_metric():
    found = list(remarks({"excluded": table()}, "excluded", "align"))
    assert found[1:3] == [
        "NDCG@10 among the rows asked for: sapo lower than grpo (−0.0625, p = .002).",
        "Among the rows asked for the one pair is not told apart in recall@10.",
    ]
    parts = table()
    unclear = {"ndcg@10": difference(0.1, 0.5), "recall@10": difference(0.1, 0.5)}
    parts.pairs[:] = [Pair("sapo", "grpo", unclear), Pair("sage", "grpo", unclear), Pair("sage", "sapo", unclear)]
    found = list(remarks({"excluded": parts}, "excluded", "align"))
    assert found[1] == "Among the rows asked for none of the 3 pairs is told apart in NDCG@10 and recall@10."


def test_equal_warnings_are_said_once():
    assert warnings(table()) == {"ndcg@10": {"One training seed.": ["sasrec", "sage"]}}


def test_numbers_and_names_are_written_for_people():
    assert [p_text(value) for value in (0.00099, 0.001, 0.5, 1.0)] == ["p < .001", "p = .001", "p = .500", "p = 1.000"]
    assert [signed(value) for value in (0.5, -0.5, 0.0)] == ["+0.5000", "−0.5000", "+0.0000"]
    assert [named(row) for row in ("item_knn", "grpo")] == ["item-kNN", "grpo"]
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert capital("validation NDCG") == "Validation NDCG"
