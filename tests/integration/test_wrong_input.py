"""Wrong input ends with exit code 2 and one clear message, and nothing is overwritten."""

from collections.abc import Callable

import pytest

from genrl.cli import main
from tests.integration.processes import end, start
from tests.runs import small

QUICK = ("objective=grpo", "align.max_epochs=1", "rl.max_steps=2", "rl.validate_every=1")
STAGES = "stages=[align,activate,rl]"
BLOCKED = (STAGES, "layout=blocked", "layout.budget=6")
Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run a command that must end with exit code 2, and return its one message."""

    def complain(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        shown = capsys.readouterr().err
        messages = [line for line in shown.splitlines() if line.startswith("genrl: ")]
        assert len(messages) == 1
        assert "Traceback" not in shown
        return shown[shown.index("genrl: ") :]

    return complain


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("objective=sappo", "unknown objective 'sappo'. Did you mean 'sapo'?"),
        ("rewards.exact_mach.weight=1", "unknown reward 'exact_mach'. Did you mean 'exact_match'?"),
        ("objective.reduction=tokens", "'tokens' is not one of sequence, token. Did you mean 'token'?\n"),
        ("stages=[aline]", "has no stage 'aline'"),
    ],
)
def test_an_unknown_name_comes_with_a_suggestion(complaint, tmp_path, override, hint):
    output = tmp_path / "runs"
    assert hint in complaint("fit", *small(output), "objective=grpo", override)
    assert not output.exists()


def test_a_process_ends_with_code_2_and_without_a_traceback(tmp_path):
    command = ["fit", *small(tmp_path / "runs", "rollout.prompts=99")]
    log = tmp_path / "log.txt"
    end(start(command, log), log, 2)
    said = log.read_text()
    assert "genrl: rollout.prompts=99, but the data set has only 80 RL prompts." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.method=gumbel", "rollout.group_size=61"], "Lower rollout.group_size or use rollout.method=sample"),
        (["rollout.prompts=81"], "rollout.prompts=81, but the data set has only 80 RL prompts"),
        (["model.name=nowhere"], "neither 'tiny' nor a folder with a Hugging Face model"),
        (["data.max_history=2000"], "do not fit into the 4096 positions of model 'tiny'. Lower data.max_history"),
        ([*BLOCKED, "layout.minimum=7"], "layout.budget=6 is smaller than the 7 words that a block needs"),
        ([*BLOCKED, "layout.total=2"], "layout.total=2 is smaller than the 3 words that 3 blocks need"),
        ([*BLOCKED, "layout.minimum=5", "activate.words=4"], "layout.minimum is 5"),
        ([STAGES, "rewards.format.weight=1"], "rewards.format judges thinking, and this layout has none"),
        ([*BLOCKED, "activate.traces=jsonl"], "activate.path: is needed by activate.traces=jsonl"),
        ([*BLOCKED, "activate.path=some.jsonl"], "is not read with activate.traces=auto"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(complaint, tmp_path, overrides, message):
    output = tmp_path / "runs"
    assert message in complaint("fit", *small(output, *QUICK, *overrides))
    left = {path.name.partition("-")[0] for path in output.rglob("*") if path.is_file()} if output.exists() else set()
    assert left <= {".lock", "sid"}
