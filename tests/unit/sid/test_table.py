import json
import os
import stat
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from genrl.catalog import Catalog
from genrl.errors import DataError
from genrl.sid import SidTable, make_table
from genrl.sid.table import FORMAT, _digest
from tests.helpers import assert_same


def catalog(counts):
    return Catalog.from_table([f"i{n}" for n in range(len(counts))], train_counts=torch.tensor(counts))


CODES = torch.tensor([[0, 0], [0, 0], [1, 2], [0, 0], [1, 0], [1, 2]])
COUNTS = [5, 7, 0, 5, 3, 0]


def test_the_collision_level_numbers_items_by_popularity_then_row():
    table = make_table(CODES, (2, 3), catalog(COUNTS))
    assert_same(table.codes[:, 2], [1, 0, 0, 2, 0, 1])
    assert table.codebook_sizes == (2, 3, 3)
    kept = make_table(CODES, (2, 3), catalog(COUNTS), collisions="keep")
    assert_same(kept.codes, CODES)
    assert kept.report.distinct == 3
    assert (table.report.collision_level, kept.report.collision_level) == (True, False)
    assert "3 SIDs short, collisions kept" in "\n".join(kept.report.lines())
    without = make_table(torch.tensor([[0], [2], [1]]), (3,), catalog([1, 1, 1]))
    assert (without.levels, without.report.colliding_items, without.report.largest_collision) == (1, 0, 1)
    assert not without.report.collision_level


def test_the_report_counts_by_item_and_by_traffic():
    report = make_table(CODES, (2, 3), catalog(COUNTS)).report
    assert (report.items, report.built, report.distinct) == (6, 3, 6)
    assert (report.colliding_items, report.largest_collision) == (5, 3)
    assert_same(report.colliding_traffic, 17 / 20)
    assert report.used_codes == (2, 2, 3)
    assert_same(list(report.perplexity), [2.0, 3 / 2 ** (2 / 3), 6 / (108 ** (1 / 6))])
    lines = "\n".join(report.lines())
    facts = ("items: 6", "built: 3", "5 (83.3% of items, 85.0% of training", "at most 3", "(none left)", "level 3: 3")
    assert [fact for fact in facts if fact not in lines] == []


@pytest.mark.parametrize("collisions", ["token", "keep"])
@pytest.mark.parametrize(
    ("colliding", "codes", "said"),
    [
        (0.1, 16, None),
        (0.11, 16, "11.0% of the items collide. About 32 codes per level suit 200 items (kmeans: sid.codes=32)."),
        (0.16, 16, "16.0% of the items collide. About 64 codes per level suit 200 items"),
        (0.3, 16, "30.0% of the items collide. About 128 codes"),
        (0.5, 16, "50.0% of the items collide. More levels tell more of them apart (kmeans: sid.levels)."),
    ],
)
def test_many_collisions_are_warned_of_with_a_number_of_codes(colliding, codes, said, collisions):
    rows = torch.arange(200)
    paired = torch.where(rows < 200 * colliding, rows // 2 * 2, rows)  # the first share items share a SID in pairs
    built = torch.stack([paired // codes, paired % codes], dim=1)
    lines = make_table(built, (codes, codes), catalog([1] * 200), collisions).report.lines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


@pytest.mark.parametrize("seed", range(3))
def test_resolved_collisions_leave_every_item_its_own_sid(seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 4, (200, 3), generator=generator)
    counts = torch.randint(0, 9, (200,), generator=generator).tolist()
    table = make_table(codes, (4, 4, 4), catalog(counts))
    assert len(table.codes.unique(dim=0)) == table.report.distinct == 200
    assert_same(table.codes[:, :3], codes)
    assert (table.codes < torch.tensor(table.codebook_sizes)).all()
    assert int(table.codes[:, 3].max()) + 1 == table.report.largest_collision


@pytest.mark.parametrize(
    ("codes", "sizes", "said"),
    [
        (CODES.int(), (2, 3), "torch.int32 codes"),
        (CODES[:5], (2, 3), r"shape \[5, 2\] for 6 items"),
        (CODES, (2, 3, 4), "3 codebook sizes"),
        (CODES, (2, 2), "code 2 of row 2 on level 2 is outside 0 .. 1"),
        (CODES - 1, (2, 3), "code -1 of row 0 on level 1"),
    ],
)
def test_codes_of_a_builder_are_checked(codes, sizes, said):
    with pytest.raises(DataError, match=said):
        make_table(codes, sizes, catalog(COUNTS))


def test_a_table_survives_saving(tmp_path):
    made = make_table(CODES, (2, 3), catalog(COUNTS))
    path = tmp_path / "runs" / "sids.safetensors"
    made.save(path)
    read = SidTable.load(path, catalog(COUNTS))
    assert_same(read.codes, made.codes)
    assert (read.codebook_sizes, read.report) == (made.codebook_sizes, made.report)
    assert os.listdir(path.parent) == ["sids.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(DataError, match="no such SID table"):
        SidTable.load(path, catalog(COUNTS))
    make_table(CODES, (2, 3), catalog(COUNTS)).save(path)
    with pytest.raises(DataError, match=r"another catalogue \(6 items, fingerprint [0-9a-f]{16}\); this one has 6"):
        SidTable.load(path, Catalog.from_table([f"j{n}" for n in range(6)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or no safetensors file"):
        SidTable.load(path, catalog(COUNTS))
    save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(DataError, match="no SID table of format"):
        SidTable.load(path, catalog(COUNTS))


def test_a_bit_that_flipped_in_a_code_or_in_what_is_said_of_them_is_told(tmp_path):
    path = tmp_path / "t.safetensors"
    make_table(CODES, (2, 3), catalog(COUNTS)).save(path)
    whole = path.read_bytes()
    for place in (len(whole) - 8, whole.index(b"colliding_items") + 19):  # the last code, a number of the report
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"t.safetensors: damaged: its codes are not .* Remove it"):
            SidTable.load(path, catalog(COUNTS))


@pytest.mark.parametrize(
    ("codes", "sizes", "said"),
    [
        (CODES, [10**12, 3], "level 1 has 1,000,000,000,000 codes, and a level of 6 items may have 65,536"),
        (CODES, [2, 10**30], "level 2 has 1,0"),
        (CODES, [2, 0], "level 2 has 0 codes"),
        (CODES, ["a", True], "level 1 has 'a' codes"),
        (CODES * 10**12, [2, 3], "is outside 0 .. 1"),
        (-CODES, [2, 3], "code -1 of row 2 on level 1"),
        (CODES.float(), [2, 3], "torch.float32"),
        (CODES, [2], r"shape \[6, 2\]"),
        (CODES[:, :0], [], "there are 0 levels"),
        (CODES.repeat(1, 20), [3] * 40, "there are 40 levels"),
        (CODES, {"a": 1}, "."),
        (CODES, 3, "not iterable"),
    ],
)
def test_a_table_that_asks_for_more_than_it_can_use_is_refused(tmp_path, codes, sizes, said):
    path, metadata = tmp_path / "t.safetensors", {"format": FORMAT, "catalog": "", "codebook_sizes": json.dumps(sizes)}
    metadata["report"] = json.dumps(asdict(make_table(CODES, (2, 3), catalog(COUNTS)).report))
    metadata["sha256"] = _digest(metadata, codes)  # whoever makes such a table can sign it, too
    save_file({"codes": codes}, path, metadata)
    with pytest.raises(DataError, match=f"t.safetensors: damaged: .*{said}"):
        SidTable.load(path)
