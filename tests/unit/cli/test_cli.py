import errno
import subprocess
import sys
from pathlib import Path

import pytest

from genrl import cli
from genrl.cli import flags
from genrl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
LIGHT = """
import sys
from genrl.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "lightning", "transformers"} & set(sys.modules)
print("omegaconf loaded" if "omegaconf" in sys.modules else "omegaconf not loaded", file=sys.stderr)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


def light(*words):
    """Run the command line in a process of its own that fails if anything heavy was imported."""
    return subprocess.run([sys.executable, "-c", LIGHT, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["", "fit", "compare", "evaluate", "sid", "recommend", "list"])
def test_help_of_every_command_loads_nothing_heavy(command):
    done = light(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: genrl" in done.stdout
    assert "omegaconf not loaded" in done.stderr


def test_a_misspelt_option_is_reported_before_torch_is_loaded():
    done = light("fit", "rl.max_step=3")
    assert done.returncode == 2
    assert "rl.max_step = 3: is not an option. Did you mean 'max_steps'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_overrides_stand_anywhere():
    options = cli.parse(["fit", "seed=1", "--objective", "sapo", "rl.max_steps=3", "--resume", "evaluate.k=[5,10]"])
    assert options.overrides == ["seed=1", "rl.max_steps=3", "evaluate.k=[5,10]"]
    assert options.objective == "sapo"
    assert options.resume


def test_flags_repeat():
    line = "fit --config a.yaml --config b.yaml --stage align --stage rl --plugin x --plugin y.py"
    options = cli.parse(line.split())
    assert (options.config, options.stage, options.plugin) == (["a.yaml", "b.yaml"], ["align", "rl"], ["x", "y.py"])


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("fit --lr 3", "write rl.learning_rate=3 or align.learning_rate=3"),
        ("fit --lr=3", "write rl.learning_rate=3"),
        ("fit --rl.max_steps 3", "write rl.max_steps=3"),
        ("fit --group-size 8", "write rollout.group_size=8"),
        ("fit --objectve sapo", "Did you mean '--objective'?"),
        ("fit --conf a.yaml", "Did you mean '--config'?"),
        ("fit --nonsense", "unknown flag --nonsense. Flags: --help, --config"),
        ("fit nonsense", "'nonsense' is neither a flag nor an override. Overrides are key=value"),
        ("list objective seed=1", "'seed=1': this command has no configuration to override"),
    ],
)
def test_what_is_not_understood_comes_with_a_hint(line, hint, capsys):
    assert cli.main(line.split()) == 2
    assert hint in capsys.readouterr().err


def test_all_misunderstandings_are_reported_together(capsys):
    assert cli.main(["fit", "--lr", "3", "nonsense", "--objectve=x"]) == 2
    shown = capsys.readouterr().err
    assert all(part in shown for part in ("--lr", "nonsense", "--objectve"))
    assert "'3'" not in shown


def test_abbreviated_flags_are_refused(capsys):
    assert cli.main(["fit", "--obj", "sapo"]) == 2
    assert "unknown flag --obj." in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "usage: genrl" in capsys.readouterr().err


def fails_with(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "_run", fail)


def test_an_error_of_the_user_is_one_message(monkeypatch, capsys):
    fails_with(monkeypatch, ConfigError("what, where, what to do"))
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "genrl: what, where, what to do\n"


def test_an_interrupt_is_130(monkeypatch, capsys):
    fails_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["list"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_any_other_error_keeps_its_traceback(monkeypatch):
    fails_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["list"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/toy/last.ckpt"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_explained(monkeypatch, capsys, error):
    fails_with(monkeypatch, error)
    assert cli.main(["list"]) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_other_errors_of_the_file_system_keep_their_traceback(monkeypatch):
    fails_with(monkeypatch, PermissionError(errno.EACCES, "no"))
    with pytest.raises(PermissionError):
        cli.main(["list"])


def test_help_says_which_sapo_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    shown = capsys.readouterr().out
    assert "Step-Aligned Policy Optimization (arXiv:2605.17648; not Soft Adaptive" in shown
    assert all(name in shown for name in ("grpo", "gbpo", "sage", "ce"))


def test_the_objectives_in_the_help_are_the_built_in_ones():
    from genrl.objectives import OBJECTIVES

    built_in = {name for name in OBJECTIVES.names() if OBJECTIVES.entry(name).origin.startswith("genrl.objectives")}
    assert set(flags.BUILT_IN) == built_in
    for name, text in flags.BUILT_IN.items():
        entry = OBJECTIVES.entry(name)
        if entry.paper.startswith("arXiv:"):
            assert text.startswith(entry.title.partition(" (")[0])
            assert entry.paper in text


def test_the_baselines_in_the_help_are_the_built_in_ones():
    from genrl.recommenders import BASELINES

    own = {name for name in BASELINES.names() if BASELINES.entry(name).origin.startswith("genrl.recommenders")}
    assert set(flags.BASELINES) == own
