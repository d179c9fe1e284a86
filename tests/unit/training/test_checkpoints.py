import json

import pytest

from genrl.files import file_hash
from genrl.training.callbacks import keep_notes
from genrl.training.checkpoints import latest, points


def kept(folder, step, content):
    path = folder / "writing"
    path.write_bytes(content)
    return path.rename(folder / f"resume-{step:08d}-{file_hash(path)[:16]}.ckpt")


def test_the_latest_checkpoint_that_holds_what_was_written_is_taken(tmp_path):
    assert latest(tmp_path) is None
    first, second, third = kept(tmp_path, 8, b"a"), kept(tmp_path, 16, b"b"), kept(tmp_path, 100, b"c")
    (tmp_path / "resume-x.ckpt").write_bytes(b"not one of ours")
    assert points(tmp_path) == [third, second, first]
    assert latest(tmp_path) == third
    third.write_bytes(b"C")
    with pytest.warns(UserWarning, match=rf"{third.name} does not hold .* going on from {second.name}"):
        assert latest(tmp_path) == second
    second.write_bytes(b"")
    first.unlink()
    with pytest.warns(UserWarning, match=rf"{second.name} does not hold .* starting the stage again"):
        assert latest(tmp_path) is None


@pytest.mark.parametrize(
    "damage", [b'{"step": 3, "a"', b"\x00" * 40, b'{"step": 3}\x00\x00\n', b"null\n", b'{"a": 1}\n']
)
def test_notes_that_were_cut_off_are_dropped_and_said(tmp_path, damage):
    path = tmp_path / "history.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in range(3)).encode()
    path.write_bytes(whole + damage)
    with pytest.warns(UserWarning, match="history.jsonl held 1 damaged line"):
        keep_notes(path, 2)
    assert path.read_bytes() == whole
    path.write_bytes(whole + damage)
    with pytest.warns(UserWarning, match="history.jsonl held 1 damaged line"):
        keep_notes(path, 1)
    assert path.read_bytes() == whole[: len(whole) * 2 // 3]
