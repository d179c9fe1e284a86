import json

import pytest

from genrl.benchmarks.recif.generations import read_generations, write_generations
from genrl.benchmarks.recif.rows import TASKS, read_rows
from genrl.errors import DataError
from tests.unit.benchmarks.recif.files import sid, write_rows

A = sid(0, 0, 1)


def test_what_is_written_is_read_with_the_answers_of_the_rows(tmp_path):
    write_rows(tmp_path, answers=[(A, [4]), (A + A, [5, 5])])
    rows, _ = read_rows(tmp_path, TASKS["ad"])
    path = tmp_path / "test_generated.json"
    write_generations(path, TASKS["ad"], "model", rows, {"0": [A], "1": []})
    task, texts, found = read_generations(path)
    assert (task, texts) == ("ad", {"0": [A], "1": []})
    assert [(row.name, row.sids, row.items, row.metadata["uid"]) for row in found] == [
        ("0", (1,), (4,), 7),
        ("1", (1, 1), (5, 5), 7),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", r"no generations\. Write \{\"samples\""),
        ('{"samples": {}}', "no generations"),
        ('{"samples": {"0": {"generations": "x"}}}', "row 0: `generations` is 'x'. Write a list of texts, best first"),
        (json.dumps({"samples": {"0": {"generations": [1]}}}), "row 0: `generations` is"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, says):
    path = tmp_path / "test_generated.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_generations(path)
