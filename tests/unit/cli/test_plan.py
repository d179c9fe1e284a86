import pytest

from genrl.cli import main
from genrl.cli.plan import size_of
from genrl.errors import ConfigError
from tests.runs import small


def test_a_plan_is_made_for_a_gpu_that_is_not_here_and_no_weights(tmp_path, capsys):
    assert main(["plan", *small(tmp_path), "trainer.accelerator=gpu", "--gpu-memory", "24GB"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("memory: ")
    assert " of 24.0 GiB on each device at the peak, in " in first
    assert "libraries 0.7 GiB" in first
    assert second.startswith("  less in ")
    assert not [path for path in tmp_path.rglob("*.safetensors") if not path.name.startswith("sid-")]


def test_what_has_no_plan_is_refused(tmp_path, capsys):
    assert main(["plan", *small(tmp_path, "model.name=item")]) == 2
    assert "a memory plan is for language models" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "24TB", "1e3GB"])
def test_sizes_need_a_unit(text):
    with pytest.raises(ConfigError, match=r"give a size with its unit, e.g. 24GB"):
        size_of(text)
