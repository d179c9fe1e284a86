"""The tool that measures invariance, on a few cases: processes, strategies, padding, order, micro-batches, resumes."""

import re

import invariance
import torch

ROW = re.compile(r"^\| ([\w ,-]+?) \| (\S+) \| (\S+) \|")


def test_neither_processes_nor_padding_nor_micro_batches_change_an_update(capsys):
    words = ["--only", "align", "grpo", "--layouts", "blocked", "--worlds", "2", "--dtypes", "float64"]
    assert invariance.main(words) == 0
    found = {
        match[1]: (float(match[2]), float(match[3]))
        for match in map(ROW.match, capsys.readouterr().out.split("\n"))
        if match
    }
    assert set(found) == {
        "3 more columns of padding",
        "another order of groups",
        "micro-batches of 3 prompts and of 1",
        "2 processes, ddp",
        "2 processes, fsdp",
    }
    assert max(gradient for gradient, _ in found.values()) < 1e-12


def test_a_difference_and_a_gradient_of_zero_are_found():
    one = {"gradient/a": torch.tensor([3.0, 4.0]), "weights/a": torch.tensor([1.0])}
    other = {"gradient/a": torch.tensor([3.0, 4.5]), "weights/a": torch.tensor([1.25])}
    assert invariance.differences(other, one) == (0.1, 0.25)
    assert invariance.differences(one, {**one, "gradient/a": torch.zeros(2)})[0] == float("inf")
