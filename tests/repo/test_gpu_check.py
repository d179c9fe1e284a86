"""The check of a GPU: what it would run is right, what fails or hangs loses nothing, and stages are measured."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import bench
import gpu_check
import pytest
import torch
import train_steps
from benchmarks.figures import compare
from benchmarks.inputs import QUICK, make_inputs
from gpu_check import Part

from genrl.cli.configuration import REGISTRIES
from genrl.config import load_config

SMALL = (
    *("model.name=tiny", "model.hidden=32", "model.layers=1", "model.heads=2", "model.feed_forward=32"),
    *("model.vocabulary=320", "stages=[align,rl]", "trainer.accelerator=cpu", "rl.max_steps=2"),
)


def planned(tmp_path, *words):
    options = gpu_check._parser().parse_args(["--out", str(tmp_path), "--smollm", str(tmp_path), *words])
    return {part.name: part for part in gpu_check.plan(options, tmp_path)}


@pytest.mark.parametrize("words", [(), ("--device", "cpu", "--quick")])
def test_every_command_is_one_that_its_program_takes(words, tmp_path, monkeypatch):
    monkeypatch.chdir(gpu_check.ROOT)
    parts = planned(tmp_path, *words)
    for part in parts.values():
        program, rest = part.words[0], list(part.words[1:])
        assert program == "-m" or Path(program).is_file()
        if program == "tools/bench.py":
            options = bench._parser().parse_args(rest)
            sizes = bench.chosen_sizes(options)
            assert (options.only, sizes.precision, sizes.device) == (part.name, "bf16", "cpu" if words else "cuda")
            assert options.only not in bench.FLOAT32
        if program == "tools/train_steps.py" and not part.lacks:
            options = train_steps._parser().parse_args(rest)
            config = load_config(options.config, None, options.overrides, REGISTRIES)
            assert (config.trainer.accelerator, options.json) == ("cpu" if words else "gpu", part.writes)
            assert (options.gpu_memory is None) == (bool(words) or "qlora" not in part.name)
            assert config.model.from_scratch is False
    assert {
        "selftest",
        "pytest",
        "rollout",
        "beam",
        "step",
        "floor",
        "memory",
        "full",
        "fsdp",
        "smollm",
    } <= parts.keys()
    assert ("qlora-large" in parts) == (not words)


def test_a_part_brings_what_it_needs_and_an_unknown_one_is_refused(tmp_path):
    parts = list(planned(tmp_path).values())
    assert [part.name for part in gpu_check.chosen(parts, ["qlora-large"])] == ["models", "qlora-large"]
    assert gpu_check.chosen(parts, None) == parts
    with pytest.raises(SystemExit, match=r"--only qlor: no such part\. Parts: pytest, selftest"):
        gpu_check.chosen(parts, ["qlor"])


def test_what_fails_hangs_or_has_no_time_loses_nothing_of_the_others(tmp_path, monkeypatch, capsys):
    figure = compare("floor", "prefill", [1.0], [2.0], checked="all", better="lower", goal=0.1)
    found = {"machine": {}, "figures": [{**asdict(figure), "met": figure.met}]}
    file = tmp_path / "good.json"
    good = f"open({str(file)!r}, 'w').write({json.dumps(found)!r})"
    hangs = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    parts = [
        Part("fails", "", ("-c", "raise ValueError('told')"), 60),
        Part("hangs", "", ("-c", hangs), 3),
        Part("good", "", ("-c", good), 60, file),
        Part("beside", "", ("-c", "import time; time.sleep(1)"), 60, early=True),
        Part("absent", "", ("-c", ""), 60, lacks="trl is not installed"),
    ]
    monkeypatch.setattr(gpu_check, "plan", lambda options, place: parts)
    begun = time.monotonic()
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert time.monotonic() - begun < 50
    states = [result["state"] for result in json.loads((tmp_path / "gpu.json").read_text())]
    assert states == ["failed (1)", "ended after 3 s", "ok", "ok", "not begun: trl is not installed"]
    page = (tmp_path / "gpu.md").read_text()
    assert "ValueError: told" in page
    assert "| prefill | 1 s | 2 s | 0.50 (0.50-0.50) | <= 0.1 **missed** |" in page
    assert str(tmp_path) + os.sep not in page
    assert gpu_check.main(["--out", str(tmp_path), "--minutes", "0"]) == 1
    assert "good: not begun: the time was up" in capsys.readouterr().out


def test_stages_are_measured_and_shown(tmp_path, capsys):
    words = (*gpu_check.COMMON, *gpu_check.QUICK, *SMALL, f"output={tmp_path}", "--json", str(tmp_path / "found.json"))
    assert train_steps.main([*words]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["stages"]
    assert list(found) == ["align", "rl"]
    for stage in found.values():
        assert stage["steps"] >= 2
        assert stage["tokens_per_second"] > 0
        assert stage["peak_mib"] > 0
    rows = list(gpu_check.stages(found))
    assert rows[2].startswith(f"| align | {found['align']['steps']} | ")
    assert all(row.count("|") == 8 for row in rows)
    assert train_steps.main([*words]) == 2
    assert "is finished, so nothing would be measured" in capsys.readouterr().err


def test_padding_is_no_token_and_a_prompt_is_counted_once():
    inputs = make_inputs(QUICK)
    part = SimpleNamespace(requests=inputs.prompts, experience=SimpleNamespace(completions=inputs.draw(8)))
    own = (1 + 4 * inputs.maker.dataset.sequences.seen(inputs.positions)).sum()  # the start, and 4 tokens an item
    assert inputs.prompts.mask.numel() > own
    assert train_steps.tokens_of(part) == own + 4 * 8 * 4


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_steps.torch.cuda, "is_available", lambda: False)
    for words in (["--gpu-memory", "24"], ["trainer.accelerator=gpu"]):
        assert train_steps.main([*SMALL, f"output={tmp_path}", *words]) == 2
        assert "PyTorch finds no GPU here" in capsys.readouterr().err


@pytest.mark.gpu
def test_less_of_a_gpu_can_be_used():
    torch.cuda.empty_cache()
    train_steps.limit(0.5)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**30, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
