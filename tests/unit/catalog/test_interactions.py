import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrl.catalog.interactions import item_rows, read_events, read_items, sorted_ids
from genrl.config.schema import ColumnsConfig
from genrl.errors import DataError
from tests.helpers import assert_same
from tests.unit.catalog.files import COLUMNS, write


def times_of(tmp_path, values, suffix="csv"):
    rows = [("u", f"i{number}", value) for number, value in enumerate(values)]
    return read_events(write(tmp_path / f"log.{suffix}", rows), ColumnsConfig()).times.tolist()


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([30, 7, 30], [1, 0, 1]),
        (["1e3", "5.5", "7"], [2, 0, 1]),
        (["2014-07-23", "2013-01-01", "2014-07-24"], [1, 0, 2]),
        (["2014-07-23T10:00:00", "2014-07-23T09:59:59.5", "2014-07-24T00:00:00"], [1, 0, 2]),
        (["2014-07-23T10:00:00Z", "2014-07-23T09:00:00Z"], [1, 0]),
    ],
)
def test_times_of_a_csv_file_are_ranked(tmp_path, values, ranks):
    assert times_of(tmp_path, values) == ranks


@pytest.mark.parametrize(
    "values",
    [
        [datetime.date(2014, 7, 23), datetime.date(2013, 1, 1)],
        [datetime.datetime(2014, 7, 23), datetime.datetime(2013, 1, 1)],
        [2.5, 1.5],
    ],
)
def test_typed_times_are_ranked(tmp_path, values):
    assert times_of(tmp_path, values, "parquet") == [1, 0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("u3", "i1", "soon"), r"log\.csv:4: timestamp is 'soon'.*neither a number nor a date"),
        (("u3", "i1", "2014-01-01"), r"log\.csv:4: timestamp is '2014-01-01'.*same kind as the first row"),
        (("", "i1", 5), r"log\.csv:4: user_id is empty \(1 such rows\)"),
        (("u3", "", 5), r"log\.csv:4: item_id is empty"),
        (("u3", "i1", ""), r"log\.csv:4: timestamp is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    path = write(tmp_path / "log.csv", [("u1", "i1", 1), ("u2", "i2", 2), row])
    with pytest.raises(DataError, match=said):
        read_events(path, ColumnsConfig())


def test_a_null_in_jsonl_and_parquet_is_named(tmp_path):
    rows = [("u1", "i1", 1), ("u2", None, 2)]
    with pytest.raises(DataError, match=r"log\.jsonl:2: item_id is empty"):
        read_events(write(tmp_path / "log.jsonl", rows), ColumnsConfig())
    with pytest.raises(DataError, match=r"log\.parquet, row 2: item_id is empty"):
        read_events(write(tmp_path / "log.parquet", rows), ColumnsConfig())


def test_whole_numbers_stay_whole_and_broken_ones_are_refused(tmp_path):
    events = read_events(write(tmp_path / "a.parquet", [(1.0, 12, 1), (2.0, 7, 2)]), ColumnsConfig())
    assert (events.user_ids, events.item_ids) == (["1", "2"], ["7", "12"])
    with pytest.raises(DataError, match=r"row 2: user_id is 2\.5, not an id"):
        read_events(write(tmp_path / "b.parquet", [(1.0, 12, 1), (2.5, 7, 2)]), ColumnsConfig())


def test_a_not_a_number_time_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 2: timestamp is not a number"):
        times_of(tmp_path, [1.0, float("nan")], "parquet")


def test_lists_are_no_ids_no_times_and_no_text(tmp_path):
    table = pa.table({"user_id": [["a"]], "item_id": ["b"], "timestamp": [[1]], "title": [["t"]], "category": ["c"]})
    pq.write_table(table, tmp_path / "log.parquet")
    source = str(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"'user_id' holds list.*not ids"):
        read_events(source, ColumnsConfig())
    with pytest.raises(DataError, match=r"'timestamp'.*holds list"):
        read_events(source, ColumnsConfig(user="item_id"))
    with pytest.raises(DataError, match=r"'title'.*holds list.*not text"):
        read_items(source, ColumnsConfig())


def test_without_time_the_order_of_the_file_counts(tmp_path):
    path = write(tmp_path / "log.csv", [("u1", "b"), ("u1", "a")], COLUMNS[:2])
    events = read_events(path, ColumnsConfig(time=None))
    assert_same(events.order.tolist(), [0, 1])
    assert_same(events.times.tolist(), [0, 1])


def test_position_orders_and_time_still_marks_ties(tmp_path):
    rows = [("u1", "a", 5, 1), ("u1", "b", 5, 0)]
    events = read_events(write(tmp_path / "log.csv", rows, (*COLUMNS, "place")), ColumnsConfig(position="place"))
    assert_same(events.order.tolist(), [1, 0])
    assert_same(events.times.tolist(), [0, 0])


def test_split_words_are_checked(tmp_path):
    rows = [("u1", "a", 1, "train"), ("u1", "b", 2, "tests")]
    path = write(tmp_path / "log.csv", rows, (*COLUMNS, "part"))
    with pytest.raises(DataError, match=r"log\.csv:3: part is 'tests'.*Did you mean 'test'.*history_only"):
        read_events(path, ColumnsConfig(split="part"))


def test_item_table(tmp_path):
    columns = ("item_id", "title", "category", "brand")
    rows = [("i2", "Red  soap", "Bath", None), ("i1", None, None, "Elm")]
    items = read_items(write(tmp_path / "items.jsonl", rows, columns), ColumnsConfig(text=["brand", "category"]))
    assert items.item_ids == ["i2", "i1"]
    assert items.titles == ["Red soap", ""]
    assert items.categories == ["Bath", None]
    assert items.texts == ["Red soap Bath", "Elm"]


def test_item_table_without_title_and_category(tmp_path):
    path = write(tmp_path / "items.csv", [("i2",), ("i1",)], ("item_id",))
    items = read_items(path, ColumnsConfig(title=None, category=None))
    assert items.titles == ["", ""]
    with pytest.raises(DataError, match=r"no column 'title'.*data\.columns\.title"):
        read_items(path, ColumnsConfig(category=None))


def test_an_item_twice_in_the_table_is_refused_with_both_places(tmp_path):
    path = write(tmp_path / "items.csv", [("a",), ("b",), ("a",)], ("item_id",))
    with pytest.raises(DataError, match=r"items\.csv:4: item_id 'a' is there already \(.*items\.csv:2\)"):
        read_items(path, ColumnsConfig(title=None, category=None))


def test_an_interaction_with_an_unknown_item_is_named(tmp_path):
    events = read_events(write(tmp_path / "log.csv", [("u", "i1", 1), ("u", "i22", 2)]), ColumnsConfig())
    with pytest.raises(DataError, match=r"log\.csv:3: item 'i22' is not in items\.csv \(2 items; 1 such rows\).*'i2'"):
        item_rows(events, ["i1", "i2"], "items.csv")
    assert_same(item_rows(events, ["i22", "i1"], "items.csv").tolist(), [1, 0])


def test_ids_sort_as_numbers_only_if_all_are():
    assert sorted_ids(["10", "9", "007"]) == ["007", "9", "10"]
    assert sorted_ids(["10", "9", "x"]) == ["10", "9", "x"]
