import json

import pytest

from genrl.benchmarks.recif.rows import TASKS, find_task, read_rows
from genrl.benchmarks.recif.sids import number_of
from genrl.errors import ConfigError, DataError
from tests.unit.benchmarks.recif.files import chat, sid, write_rows

AD = TASKS["ad"]
THREE = sid(1, 2, 3)


def test_rows_have_plain_messages_gold_in_its_order_and_the_number_they_had(tmp_path):
    both = THREE + sid(0, 0, 4)
    metadata = [
        json.dumps({"answer": both, "answer_pid": [5, 0, 6]}),
        json.dumps({"answer": " ", "answer_pid": [5]}),
        json.dumps({"answer": THREE, "answer_iid": "[8]", "uid": 3}),
    ]
    write_rows(tmp_path, metadata=metadata, messages=[chat(parts=True), chat(), chat("?")])
    rows, without = read_rows(tmp_path, AD)
    assert ([row.name for row in rows], without) == (["0", "2"], ["1"])
    assert rows[0].messages == (
        {"role": "system", "content": "你是推荐专家。"},
        {"role": "user", "content": "喜欢什么？"},
    )
    assert (rows[0].sids, rows[0].items) == ((number_of((1, 2, 3)), 4), (5, 6))
    assert (rows[1].sids, rows[1].items, rows[1].metadata["uid"]) == ((number_of((1, 2, 3)),), (8,), 3)
    assert [row.name for row in read_rows(tmp_path, AD, 1)[0]] == ["0"]


def test_nested_columns_are_read_as_well_as_json(tmp_path):
    write_rows(
        tmp_path,
        metadata=[{"answer": THREE, "answer_pid": [4]}],
        messages=[[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]],
    )
    (row,), _ = read_rows(tmp_path, AD)
    assert (row.messages, row.items) == (({"role": "user", "content": "ab"},), (4,))


def test_products_may_be_called_goods_and_the_file_may_lie_in_the_folder_itself(tmp_path):
    path = write_rows(tmp_path, "goods", [(THREE, [1])])
    assert len(read_rows(tmp_path, find_task("product"))[0]) == 1
    assert len(read_rows(path.parent, find_task("goods"))[0]) == 1


def test_labels_are_yes_and_no(tmp_path):
    write_rows(tmp_path, "label_pred", [("是<|im_end|>", []), ("否", []), ("?", [])])
    assert [row.label for row in read_rows(tmp_path, TASKS["label_pred"])[0]] == [1, 0, None]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "vidoe",
            r"no such task\. Did you mean 'video'\? Tasks: video, ad, product, interactive, label_cond, label_pred",
        ),
        ("rec_reason", "a language model judges, which is not done here"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        find_task(name)


GOOD = json.dumps({"answer": THREE})


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"metadata": ["{"]}, "row 0: metadata is not JSON: .* Mend the file"),
        ({"metadata": ["[1]"]}, r"row 0: metadata is '\[1\]', not an object with the key `answer`"),
        ({"metadata": [GOOD], "messages": ["{"]}, "row 0: messages is not JSON"),
        ({"metadata": [GOOD], "messages": ['["hello"]']}, r"row 0: messages are .* Write a list of \{\"role\""),
        (
            {"answers": [(THREE.replace("b_2", "b_8192"), [])]},
            r"row 0: SID 1 of the answer has a code outside 0 \.\. 8191",
        ),
        ({"answers": [(THREE, ["x"])]}, r"row 0: answer_pid \(or answer_iid\) is .* Write a list of whole numbers"),
        ({"answers": [("", [])]}, "no row has an answer in its metadata"),
    ],
)
def test_damaged_rows_are_refused_by_their_number(tmp_path, written, says):
    write_rows(tmp_path, **written)
    with pytest.raises(DataError, match=says):
        read_rows(tmp_path, AD)


def test_a_file_without_metadata_without_rows_or_of_another_form_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"no test rows of task ad\. Looked for .*ad_test.parquet or "):
        read_rows(tmp_path, AD)
    path = write_rows(tmp_path, answers=[(THREE, [1])])
    parquet.write_table(pa.table({"messages": [chat()], "answer": [THREE]}), path)
    with pytest.raises(DataError, match="no column 'metadata'; columns there: messages, answer"):
        read_rows(tmp_path, AD)
    path.write_text("messages,metadata")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_rows(tmp_path, AD)
