import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genrl import cli
from genrl.cli import flags
from genrl.errors import ConfigError, Stopped
from genrl.objectives import OBJECTIVES
from genrl.recommenders import BASELINES

ROOT = Path(__file__).resolve().parents[3]
LIGHT = """
import sys
from genrl.cli import main
for line in sys.argv[1:]:
    try:
        code = main(line.split())
    except SystemExit as stop:
        code = stop.code
    print(line, code, *sorted({"torch", "lightning", "transformers", "omegaconf"} & set(sys.modules)), file=sys.stderr)
"""
"""Says the exit code of each line, and what heavy has been imported by then."""


def test_help_of_every_command_and_a_misspelt_option_load_nothing_heavy():
    names = ("fit", "compare", "evaluate", "sid", "recommend", "slates", "verify", "list")
    lines = ["--help", *(f"{name} --help" for name in names), "fit rl.max_step=3"]
    done = subprocess.run([sys.executable, "-c", LIGHT, *lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: genrl") == len(names) + 1
    *helps, problem, last = done.stderr.splitlines()
    assert helps == [f"{line} 0" for line in lines[:-1]]
    assert "rl.max_step = 3: is not an option. Did you mean 'max_steps'?" in problem
    assert last == "fit rl.max_step=3 2 omegaconf"


def test_overrides_stand_anywhere_and_flags_repeat():
    options = cli.parse(["fit", "seed=1", "--objective", "sapo", "rl.max_steps=3", "--resume", "evaluate.k=[5,10]"])
    assert options.overrides == ["seed=1", "rl.max_steps=3", "evaluate.k=[5,10]"]
    assert options.objective == "sapo"
    assert options.resume
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
        ("fit --obj sapo", "unknown flag --obj."),
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


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "usage: genrl" in capsys.readouterr().err


def fails_with(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    return cli.main(["list"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("what, where, what to do"), 2, "genrl: what, where, what to do\n"),
        (Stopped(signal.SIGINT), 130, "stopped by SIGINT. `fit --resume`"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/toy/last.ckpt"), 2, "the disk is full"),
        (
            FileExistsError(errno.EEXIST, "File exists", "runs/toy"),
            2,
            "runs/toy: File exists. A file has the name that",
        ),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), 2, "the disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "genrl: out of memory (DefaultCPUAllocator: "),
        (ValueError("serializing: I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
    ],
)
def test_what_the_user_can_mend_is_one_message(monkeypatch, capsys, error, code, said):
    assert fails_with(monkeypatch, error) == code
    assert said in capsys.readouterr().err


def test_a_plugin_that_ends_the_process_is_no_success(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    assert cli.main(["list", "--plugin", str(tmp_path / "mine.py")]) == 2
    assert "does not import: SystemExit: 0" in capsys.readouterr().err
    monkeypatch.setattr("genrl.registry.load_plugin", lambda _: sys.exit(0))  # of any other code
    assert cli.main(["list", "--plugin", "mine"]) == 2
    assert "ended the process with sys.exit(0), so it is not done" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EINVAL, "no")])
def test_any_other_error_keeps_its_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        fails_with(monkeypatch, error)


def test_help_says_which_sapo_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    shown = capsys.readouterr().out
    assert "Step-Aligned Policy Optimization (arXiv:2605.17648; not Soft Adaptive" in shown
    assert all(name in shown for name in ("grpo", "gbpo", "sage", "ce"))


def test_the_components_in_the_help_are_the_built_in_ones():
    built_in = {name for name in OBJECTIVES.names() if OBJECTIVES.entry(name).origin.startswith("genrl.objectives")}
    assert set(flags.BUILT_IN) == built_in
    for name, text in flags.BUILT_IN.items():
        entry = OBJECTIVES.entry(name)
        if entry.paper.startswith("arXiv:"):
            assert text.startswith(entry.title.partition(" (")[0])
            assert entry.paper in text
    own = {name for name in BASELINES.names() if BASELINES.entry(name).origin.startswith("genrl.recommenders")}
    assert set(flags.BASELINES) == own
