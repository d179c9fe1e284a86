import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrl.catalog.interactions import item_rows, read_events, read_items, sorted_ids
from genrl.config.schema import ColumnsConfig, DataConfig
from genrl.errors import DataError
from tests.unit.catalog.files import COLUMNS, files_config, write


def columns(**names):
    return DataConfig(columns=ColumnsConfig(**names))


def parquet_of(path, *parts, name="user_id"):
    """A folder with one file for each list or array of values of a column; the others are made up."""
    path.mkdir()
    for number, values in enumerate(parts):
        other = [f"i{row}" for row in range(len(values))]
        data = {"user_id": other, "item_id": other, "timestamp": list(range(len(values))), name: values}
        pq.write_table(pa.table(data), path / f"part{number}.parquet")
    return str(path)


@pytest.mark.parametrize(
    ("parts", "ranks"),
    [
        ([["30", "7", "30"]], [1, 0, 1]),
        ([["1e3", "5.5", "7"]], [2, 0, 1]),
        ([["2014-07-23", "2013-01-01", "2014-07-24"]], [1, 0, 2]),
        ([["2014-07-23T10:00:00", "2014-07-23T09:59:59.5", "2014-07-24T00:00:00"]], [1, 0, 2]),
        ([["2014-07-23T10:00:00Z", "2014-07-23T09:00:00Z"]], [1, 0]),
        ([[2.5, 1.5]], [1, 0]),
        ([[datetime.date(2014, 7, 23), datetime.date(2013, 1, 1)]], [1, 0]),
        ([[datetime.datetime(2014, 7, 23), datetime.datetime(2013, 1, 1)]], [1, 0]),
        ([pa.array([9, 4], pa.uint64())], [1, 0]),
        ([np.array([9, 4], np.float16)], [1, 0]),
        ([[30, 7], [8.5]], [2, 0, 1]),
        ([[30, 7], ["8"]], [2, 0, 1]),
        ([[datetime.datetime(2014, 7, 23)], [datetime.date(2014, 7, 22)], ["2014-07-22T12:00:00"]], [2, 0, 1]),
        ([pa.array(["2", "10"], pa.large_string())], [0, 1]),
    ],
)
def test_times_are_ranked_whatever_the_types_of_the_parts(tmp_path, parts, ranks):
    sources = [parquet_of(tmp_path / "log", *parts, name="timestamp")]
    if len(parts) == 1:  # as a date or a number is written
        sources.append(write(tmp_path / "log.csv", [("u", "i", value) for value in parts[0]]))
    for source in sources:
        assert read_events(source, columns()).times.tolist() == ranks


NAMES = (*COLUMNS, "part", "click")


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time64("us"), pa.duration("s"), pa.date32(), pa.date64()])
def test_every_kind_of_time_that_parquet_has_is_ranked(tmp_path, kind):
    days = pa.array([9 * 86_400_000, 4 * 86_400_000], pa.int64()) if kind == pa.date64() else pa.array([9, 4])
    values = days.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    assert read_events(parquet_of(tmp_path / "log", values, name="timestamp"), columns()).times.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("log.csv", ("u3", "i1", "soon", "", 1), r":4: timestamp is 'soon'.*neither a number nor a date"),
        ("log.csv", ("u3", "i1", "2014-01-01", "", 1), r":4: timestamp is '2014-.*same kind as the first row"),
        ("log.csv", ("u3", "i1", "inf", "", 1), r":4: timestamp is not a number but inf"),
        ("log.csv", ("", "i1", 5, "", 1), r":4: user_id is empty \(1 such rows\)"),
        ("log.csv", ("u3", "i1", "", "", 1), r":4: timestamp is empty"),
        ("log.csv", ("u3", "i1", 5, "tests", 1), r":4: part is 'tests'.*Did you mean 'test'.*history_only"),
        ("log.csv", ("u3", "i1", 5, "test", "long"), r":4: click is .*'long', which is neither a number nor true"),
        ("log.csv", ("u3", "i1", 5, "test", "1e39"), r":4: click is .*too large"),
        ("log.jsonl", ("u3", None, 5, "test", 1), r":3: item_id is empty"),
        ("log.parquet", ("u3", None, 5, "test", 1), r", row 3: item_id is empty"),
        ("log.parquet", ("u3", "i1", float("nan"), "test", 1), ", row 3: timestamp is not a number but nan"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, name, row, said):
    path = write(tmp_path / name, [("u1", "i1", 1, "train", 1), ("u2", "i2", 2, "train", 1), row], NAMES)
    with pytest.raises(DataError, match=name.replace(".", r"\.") + said):
        read_events(path, columns(split="part", feedback=["click"]))


@pytest.mark.parametrize(
    ("parts", "ids"),
    [
        ([[1.0, 2.0]], ["1", "2"]),
        ([np.array([1, 2048 - 1], np.float16)], ["1", "2047"]),
        ([pa.array([1, 60], pa.time32("s"))], ["00:00:01.000", "00:01:00.000"]),
        ([[2**53 + 1, 2**63 - 1]], ["9007199254740993", "9223372036854775807"]),
        ([pa.array([2**64 - 1], pa.uint64())], ["18446744073709551615"]),
        ([[2.0**53 - 1]], ["9007199254740991"]),
        ([[1, 12], ["u1", "12"], [12.0]], ["1", "12", "u1"]),
        ([["001", "1", "2020-01-01"]], ["001", "1", "2020-01-01"]),
        ([pa.array(["b", "a", "b"]).dictionary_encode()], ["a", "b"]),
    ],
)
def test_ids_are_the_same_text_whatever_their_type(tmp_path, parts, ids):
    assert read_events(parquet_of(tmp_path / "log", *parts), columns()).user_ids == ids


def jsonl_of(path, values):
    return write(path, [(value, value, number) for number, value in enumerate(values)])


def test_jsonl_keeps_what_is_written(tmp_path):
    ids = [12345678901234567890, "2020-01-01", "001", 12.0, True, 2**53 + 1]
    events = read_events(jsonl_of(tmp_path / "log.jsonl", ids), columns())
    texts = ["12345678901234567890", "2020-01-01", "001", "12", "true", "9007199254740993"]
    assert [events.user_ids[code] for code in events.users] == texts
    rows = list(enumerate([1984, 1.5, "1e5", None]))
    items = read_items(write(tmp_path / "items.jsonl", rows, ("item_id", "title")), columns(category=None))
    assert items.titles == ["1984", "1.5", "1e5", ""]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.5], r"2: user_id is 2\.5, not an id"),
        ([1.0, float("inf")], "2: user_id is inf, not an id"),
        ([1.0, float("nan")], "2: user_id is nan, not an id"),
        ([1.0, 2.0**53], r"2: user_id is 9007199254740992, a float above 2\^53.*as text or as integers"),
        (pa.array([1, 2**24], pa.float32()), r"2: user_id is 16777216, a float above 2\^24"),
        (["a", [1]], "2: user_id is a list, not an id"),  # in JSONL alone
    ],
)
def test_what_is_no_id_or_may_have_lost_digits_is_refused(tmp_path, values, said):
    if not isinstance(values, pa.Array):
        with pytest.raises(DataError, match=rf"log\.jsonl:{said}"):
            read_events(jsonl_of(tmp_path / "log.jsonl", values), columns())
    if not isinstance(values[0], str):
        with pytest.raises(DataError, match=f"row {said}"):
            read_events(parquet_of(tmp_path / "log", [1.0], values), columns())


def test_feedback_is_kept_as_float32_and_missing_values_as_nan(tmp_path):
    rows = [("u1", "a", 1, True, 2.5), ("u1", "b", 2, False, None), ("u2", "a", 3, None, 7)]
    names = (*COLUMNS, "click", "play_time")
    for suffix in ("csv", "jsonl", "parquet"):
        events = read_events(write(tmp_path / f"log.{suffix}", rows, names), columns(feedback=["click", "play_time"]))
        assert [events.feedback[name].dtype for name in names[3:]] == [np.float32, np.float32]
        np.testing.assert_array_equal(events.feedback["click"], [1, 0, np.nan])
        np.testing.assert_array_equal(events.feedback["play_time"], [2.5, np.nan, 7])


@pytest.mark.parametrize(
    ("rows", "options", "order", "times"),
    [
        ([("u1", "b"), ("u1", "a")], {"time": None}, [0, 1], [0, 1]),
        ([("u1", "a", 5, 1), ("u1", "b", 5, 0)], {"position": "place"}, [1, 0], [0, 0]),
    ],
)
def test_position_orders_while_time_marks_ties_and_without_both_the_file_counts(tmp_path, rows, options, order, times):
    names = (*COLUMNS, "place")[: len(rows[0])]
    events = read_events(write(tmp_path / "log.csv", rows, names), columns(**options))
    assert (events.order.tolist(), events.times.tolist()) == (order, times)


def test_lists_are_no_ids_no_times_and_no_text(tmp_path):
    source = str(tmp_path / "log.parquet")
    table = pa.table({"user_id": [["a"]], "item_id": ["b"], "timestamp": [[1]], "title": [["t"]], "category": ["c"]})
    pq.write_table(table, source)
    for read, names, said in (
        (read_events, {}, r"'user_id' holds list.*not ids"),
        (read_events, {"user": "item_id"}, r"'timestamp'.*holds list"),
        (read_items, {}, r"'title'.*holds list.*not text"),
    ):
        with pytest.raises(DataError, match=said):
            read(source, columns(**names))
    nothing = pa.array([None, None], pa.list_(pa.int64()))  # a column of lists that all are missing
    with pytest.raises(DataError, match="row 1: timestamp is empty"):
        read_events(parquet_of(tmp_path / "empty", nothing, name="timestamp"), columns())


def test_item_table(tmp_path):
    rows = [("i2", "Red  soap", "Bath", None), ("i1", None, None, "Elm")]
    items = read_items(
        write(tmp_path / "items.jsonl", rows, ("item_id", "title", "category", "brand")),
        columns(text=["brand", "category"], attributes=["brand"]),
    )
    assert items.item_ids == ["i2", "i1"]
    assert items.titles == ["Red soap", ""]
    assert items.categories == ["Bath", None]
    assert items.texts == ["Red soap Bath", "Elm"]
    assert items.attributes == {"brand": ["", "Elm"]}
    bare = columns(title=None, category=None)
    path = write(tmp_path / "items.csv", [("i2",), ("i1",), ("i2",)], ("item_id",))
    with pytest.raises(DataError, match=r"items\.csv:4: item_id 'i2' is there already \(.*items\.csv:2\)"):
        read_items(path, bare)
    path = write(tmp_path / "items.csv", [("i2",), ("i1",)], ("item_id",))
    assert read_items(path, bare).titles == ["", ""]
    with pytest.raises(DataError, match=r"no column 'title'.*data\.columns\.title"):
        read_items(path, columns(category=None))


def test_items_of_interactions_are_found_and_ids_sort_as_numbers_only_if_all_are(tmp_path):
    events = read_events(write(tmp_path / "log.csv", [("u", "i1", 1), ("u", "i22", 2)]), columns())
    with pytest.raises(DataError, match=r"log\.csv:3: item 'i22' is not in items\.csv \(2 items; 1 such rows\).*'i2'"):
        item_rows(events, ["i1", "i2"], "items.csv")
    assert item_rows(events, ["i22", "i1"], "items.csv").tolist() == [1, 0]
    assert sorted_ids(["10", "9", "007", "0", "00"]) == ["0", "00", "007", "9", "10"]
    assert sorted_ids(["9" * 5_000, "1" + "0" * 5_000, "8"]) == ["8", "9" * 5_000, "1" + "0" * 5_000]
    assert sorted_ids(["10", "9", "x"]) == ["10", "9", "x"]


DAY = 86_400 * 10**9
TWO_DAYS = {
    "days": (10, 11, 12),
    "hours": (10 * 24, 11 * 24, 12 * 24),
    "s": (1.5, 86_401.5, 172_801.5),
    "ms": (10**12, 10**12 + 86_400_000, 10**12 + 2 * 86_400_000),
    "ns": (7, 7 + DAY, 7 + 2 * DAY),
    "date": ("2014-02-28", "2014-03-01", "2014-03-02"),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("unit", TWO_DAYS)
def test_times_of_a_stated_unit_are_a_clock(tmp_path, unit, suffix):
    path = write(tmp_path / f"log.{suffix}", [("u", "i", time) for time in TWO_DAYS[unit]])
    assert read_events(path, files_config(path, time_unit=unit)).clock.tolist() == [0, DAY, 2 * DAY]
    assert read_events(path, files_config(path)).clock is None


def test_dates_of_arrow_say_their_unit_themselves(tmp_path):
    days = pa.array([10, 12], pa.int32())
    columns = {"user_id": ["u", "u"], "item_id": ["i", "j"]}
    for kind in (pa.date32(), pa.timestamp("s"), pa.timestamp("ns", tz="UTC")):
        pq.write_table(pa.table({**columns, "timestamp": days.cast(pa.date32()).cast(kind)}), tmp_path / "log.parquet")
        config = files_config(tmp_path / "log.parquet", time_unit="date")
        assert read_events(str(tmp_path / "log.parquet"), config).clock.tolist() == [0, 2 * DAY]


@pytest.mark.parametrize(
    ("times", "unit", "reason"),
    [
        (
            (0, 90_000),
            "days",
            r"spans 247 years if data\.time_unit=days is its unit\. Say the right one: ns, us",
        ),
        ((0.0, 1e300), "s", r"spans .* years if data\.time_unit=s"),
        ((0, 1), "date", r"holds int64, and data\.time_unit=date is for dates\. Say its unit: ns, us"),
        (
            ("2014-01-01", "2014-01-02"),
            "s",
            r"holds timestamp.*=s is for numbers\. Set data\.time_unit=date",
        ),
    ],
)
def test_a_unit_that_the_times_do_not_have_is_refused(tmp_path, times, unit, reason):
    path = write(tmp_path / "log.csv", [("u", "i", time) for time in times])
    with pytest.raises(DataError, match=rf"column 'timestamp' \(data\.columns\.time\) {reason}"):
        read_events(path, files_config(path, time_unit=unit))
