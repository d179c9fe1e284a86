import json

import pytest
import torch

from genrl.benchmarks.recif.maps import read_map
from genrl.benchmarks.recif.sids import number_of
from genrl.errors import DataError
from tests.helpers import assert_same
from tests.unit.benchmarks.recif.files import write_map


def test_a_sid_stands_for_its_most_popular_item_and_for_the_first_of_equals(tmp_path):
    entries = {(8191, 0, 1): [(4, 1), (5, 7), (6, 7)], (0, 0, 2): [(9, 0)], (0, 0, 3): []}
    found = read_map(write_map(tmp_path, entries))
    sids = [number_of(codes) for codes in ((8191, 0, 1), (0, 0, 2), (0, 0, 3), (8191, 8191, 8191))]
    assert_same(found.items_of(torch.tensor([*sids, -1])), torch.tensor([5, 9, -1, -1, -1]))
    assert found.tied == 1
    assert_same(found.codes, torch.tensor([[0, 0, 2], [8191, 0, 1]]))
    goods = read_map(write_map(tmp_path, {(0, 0, 2): [(3, 0)]}, "sid2iid.json", "iid"))
    assert_same(goods.items_of(torch.tensor(2)), torch.tensor(3))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file, given by .*mode=sid needs none"),
        ("{", "not JSON"),
        ("[]", "no object of SIDs"),
        ('{"1,2,3": []}', r"key '1,2,3' is no SID\. Keys are a \* 8192\^2"),
        (json.dumps({str(8192**3): []}), "from 0 to 549755813887"),
        ('{"7": [{"pid": 1}]}', "an item of SID 7 .* without a whole number as 'count_after_downsample'"),
        ('{"7": [{"count_after_downsample": 1}]}', "without a whole number as 'pid' or 'iid'"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path, text, says):
    path = tmp_path / "sid2pid.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_map(path)
