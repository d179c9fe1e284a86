"""A hundred broken and hostile inputs of every kind, always the same ones: success, or an error that says what."""

from fuzz import fuzz


def test_no_input_ends_in_a_traceback_or_leaves_anything_behind(tmp_path):
    counts = dict(fuzz(120, tmp_path))
    faults = {name: dict(count.faults) for name, count in counts.items() if count.faults}
    assert faults == {}, {name: count.first for name, count in counts.items() if count.first}
    assert all(count.passed and count.refused for count in counts.values()), counts
