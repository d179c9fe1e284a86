import errno
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from genrl import cli
from genrl.config import run_folder
from genrl.errors import ConfigError, DataError, GenRLError
from genrl.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def run_module(monkeypatch):
    """Stands for genrl.runs.fit and genrl.runs.recommend and records what the command line asks of them."""
    module = ModuleType("genrl.runs")
    module.calls = []

    def record(name, result):
        def called(*args, **kwargs):
            module.calls.append((name, args, kwargs))
            return result

        return called

    module.fit = record("fit", Path("runs/toy/sapo-s0"))
    module.evaluate_run = record("evaluate_run", {})
    module.found = SimpleNamespace(items=[("17", "a title", -0.5)], thinking=["red fruit", "sweet"])
    module.recommend = record("recommend", [module.found])
    module.build_sids = record(
        "build_sids", SimpleNamespace(report=SimpleNamespace(lines=lambda: ["items: 300", "300 distinct SIDs"]))
    )
    for name in ("fit", "recommend"):
        monkeypatch.setitem(sys.modules, f"genrl.runs.{name}", module)
    return module


@pytest.fixture
def composed(monkeypatch):
    """Stands for `compose` where the components do not matter."""
    from genrl.config import load_config

    names = ("objective", "seed", "stage")
    monkeypatch.setattr(
        cli,
        "compose",
        lambda options: load_config(options.config, {n: getattr(options, n) for n in names}, options.overrides),
    )


@pytest.mark.parametrize("command", ["", "fit", "compare", "evaluate", "sid", "recommend", "list"])
def test_help_of_every_command_loads_nothing_heavy(command):
    done = light(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: genrl" in done.stdout
    assert "omegaconf not loaded" in done.stderr


def test_help_answers_in_under_half_a_second():
    def seconds():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "genrl", "--help"], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


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


def test_fit_hands_over_configuration_and_command(run_module, composed):
    assert cli.main(["fit", "--objective", "gbpo", "rl.max_steps=3", "--resume", 'prompt.prefix="a b"']) == 0
    ((name, (config,), options),) = run_module.calls
    assert (name, config.objective, config.rl.max_steps, options["resume"]) == ("fit", {"name": "gbpo"}, 3, True)
    assert (
        options["command"] == """python -m genrl fit --objective gbpo rl.max_steps=3 --resume 'prompt.prefix="a b"'"""
    )


def test_evaluate_takes_a_folder_or_a_configuration(run_module, composed):
    assert cli.main(["evaluate", "--run", "runs/x", "--split", "valid", "evaluate.beam=40"]) == 0
    assert cli.main(["evaluate", "--objective", "gbpo", "--seed", "2"]) == 0
    first, second = run_module.calls
    assert first == ("evaluate_run", (Path("runs/x"),), {"split": "valid", "overrides": ["evaluate.beam=40"]})
    assert second[1] == (Path("runs/toy/gbpo-s2"),)
    assert second[2]["split"] == "test"


@pytest.mark.parametrize("extra", [["--objective", "gbpo"], ["--seed", "0"], ["--config", "a.yaml"]])
def test_evaluate_refuses_flags_that_the_run_folder_would_override(run_module, capsys, extra):
    assert cli.main(["evaluate", "--run", "runs/x", *extra]) == 2
    assert f"{extra[0]} would be ignored" in capsys.readouterr().err
    assert run_module.calls == []


def test_sid_prints_the_report(run_module, composed, capsys):
    assert cli.main(["sid", "sid.codes=16"]) == 0
    assert run_module.calls[0][1][0].sid["codes"] == 16
    assert "300 distinct SIDs" in capsys.readouterr().out


def test_recommend_prints_a_ranked_list(run_module, capsys):
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3, 4", "--top", "1", "--exclude-history"]) == 0
    asked = {"exclude_seen": True, "only": None, "cold": False, "exact": False, "overrides": []}
    assert run_module.calls == [("recommend", (Path("runs/x"), [["3", "4"]], 1), asked)]
    shown = capsys.readouterr().out
    assert "after 3, 4:" in shown
    assert "17  a title" in shown
    assert "red fruit" not in shown


def test_recommend_prints_the_thinking_beside_the_items(run_module, capsys):
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--show-thinking"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["after 3:", "thought 1: red fruit", "thought 2: sweet"]
    assert lines[3].endswith("17  a title")


def test_thinking_cannot_be_shown_where_there_is_none(run_module, capsys):
    run_module.found.thinking = None
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--show-thinking"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "runs/x writes no thinking that could be shown" in " ".join(shown.err.split())


def test_recommend_among_some_items(run_module, tmp_path):
    stock = tmp_path / "stock.txt"
    stock.write_text("17\n\n  a title\n")
    words = ["recommend", "--run", "runs/x", "--history", "3", "--only", str(stock), "--cold", "--exact"]
    assert cli.main(words) == 0
    asked = {"exclude_seen": False, "only": ["17", "a title"], "cold": True, "exact": True, "overrides": []}
    assert run_module.calls[0][2] == asked


@pytest.mark.parametrize(("text", "reason"), [(None, "no such file"), ("\n \n", "names no item")])
def test_a_list_of_items_that_says_nothing_is_refused(run_module, tmp_path, capsys, text, reason):
    stock = tmp_path / "stock.txt"
    if text is not None:
        stock.write_text(text)
    assert cli.main(["recommend", "--run", "runs/x", "--history", "3", "--only", str(stock)]) == 2
    assert run_module.calls == []
    shown = " ".join(capsys.readouterr().err.split())
    assert f"--only {stock}: " in shown
    assert reason in shown


@pytest.mark.parametrize("words", [[], ["--history", " , "], ["--history", "3", "--top", "0"]])
def test_recommend_without_a_history_or_a_list(words, run_module):
    assert cli.main(["recommend", "--run", "runs/x", *words]) == 2
    assert run_module.calls == []


def test_histories_from_a_file(tmp_path):
    path = tmp_path / "histories.jsonl"
    path.write_text('["a, with comma", "b"]\n\n{"user": 1, "history": [3]}\n')
    assert cli.read_histories("x", path) == [["x"], ["a, with comma", "b"], ["3"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [("[1,", ":2: this is not JSON"), ('{"items": [1]}', ":2: "), ("3", "is no history"), ('[["a"]]', "is no history")],
)
def test_a_broken_history_names_file_and_line(tmp_path, line, reason):
    path = tmp_path / "histories.jsonl"
    path.write_text(f"[1]\n{line}\n")
    with pytest.raises(DataError) as caught:
        cli.read_histories(None, path)
    assert f"{path}:2: " in str(caught.value)
    assert reason in str(caught.value)


def test_a_history_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        cli.read_histories(None, tmp_path / "nothing")


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


def test_the_objectives_in_the_help_are_the_built_in_ones():
    from genrl.objectives import OBJECTIVES

    built_in = {name for name in OBJECTIVES.names() if OBJECTIVES.entry(name).origin.startswith("genrl.objectives")}
    assert set(cli.BUILT_IN) == built_in
    for name, text in cli.BUILT_IN.items():
        entry = OBJECTIVES.entry(name)
        if entry.paper.startswith("arXiv:"):
            assert text.startswith(entry.title.partition(" (")[0])
            assert entry.paper in text


def test_the_baselines_in_the_help_are_the_built_in_ones():
    from genrl.recommenders import BASELINES

    own = {name for name in BASELINES.names() if BASELINES.entry(name).origin.startswith("genrl.recommenders")}
    assert set(cli.BASELINES) == own


def test_a_baseline_is_a_run_of_its_own():
    config = cli.compose(cli.parse(["fit", "--baseline", "sasrec", "--seed", "2", "baseline.loss=binary"]))
    assert config.stages == ["baseline"]
    assert (config.baseline["name"], config.baseline["loss"]) == ("sasrec", "binary")
    assert run_folder(config) == Path("runs/toy/sasrec-s2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "sasrek"], "unknown baseline 'sasrek'. Did you mean 'sasrec'"),
        (["--baseline", "sasrec", "baseline.hiden=3"], "has no option 'hiden'. Did you mean 'hidden'"),
        (["--baseline", "sasrec", "--objective", "grpo"], "--baseline sasrec is a run of its own, without --objective"),
        (["--baseline", "tiger", "--stage", "rl"], "--baseline tiger is a run of its own, without --stage"),
        (["stages=[align,baseline]"], "has `baseline` beside other stages. Run it alone: --baseline NAME"),
    ],
)
def test_what_is_wrong_with_a_baseline_is_said(words, message):
    with pytest.raises(GenRLError, match=re.escape(message)):
        cli.compose(cli.parse(["fit", *words]))


def test_help_says_which_sapo_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    shown = capsys.readouterr().out
    assert "Step-Aligned Policy Optimization (arXiv:2605.17648; not Soft Adaptive" in shown
    assert all(name in shown for name in ("grpo", "gbpo", "sage", "ce"))


def test_list_shows_names_titles_papers_origins_and_broken_plugins(monkeypatch, capsys):
    registry = Registry("objective", "genrl.test_nothing")

    @registry.register("mine", aliases=("my-own",), title="My Own", paper="2605.17648")
    @dataclass
    class Mine:
        pass

    monkeypatch.setattr(registry, "broken", lambda: {"theirs": "ModuleNotFoundError: no module"})
    monkeypatch.setattr(registry, "names", lambda: ("mine", "theirs"))
    monkeypatch.setitem(cli.REGISTRIES, "objective", lambda: registry)
    assert cli.main(["list", "objective"]) == 0
    shown = capsys.readouterr().out
    assert "mine, my-own" in shown
    assert "My Own  [arXiv:2605.17648]" in shown
    assert "test_cli" in shown
    assert "theirs (broken: ModuleNotFoundError: no module)" in shown


def test_list_shows_every_registry(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "objectives",
        "sapo, step-aligned",
        "layouts",
        "sid",
        "rewards",
        "exact_match",
        "SID builders",
        "kmeans",
    ):
        assert word in shown


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["rollout.group_size=1"], "rollout.group_size"),
        (["rewards.level_match=null"], "needs a match per step"),
        (["rewards.level_match.weight=0"], "needs a match per step"),
        (["rewards.level_match.weight=0", "rewards.exact_match.weight=0"], "none has a weight other than 0"),
    ],
)
def test_an_objective_that_cannot_learn_is_refused(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        cli.compose(cli.parse(["fit", "--objective", "sapo", *overrides]))


def test_a_stage_without_rl_asks_nothing_of_the_objective():
    assert cli.compose(cli.parse(["fit", "--stage", "align", "rollout.group_size=1"])).stages == ["align"]


@pytest.mark.parametrize("name", list(cli.BUILT_IN))
def test_every_built_in_objective_fits_the_defaults(name):
    assert cli.compose(cli.parse(["fit", "--objective", name])).objective["name"] == name


def test_the_saved_configuration_with_real_components_is_the_same_one(tmp_path):
    from genrl.config import load_config, save_config

    config = cli.compose(
        cli.parse(["fit", "--objective", "sapo", "objective.kl_coef=0.01", "rewards.format.weight=0.1"])
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config([tmp_path / "config.yaml"], registries=cli.REGISTRIES) == config
    assert json.dumps(config.objective["kl_coef"]) == "0.01"


def test_components_are_listed_by_their_plural_too(capsys):
    assert cli.main(["list", "objective"]) == 0
    one = capsys.readouterr().out
    assert cli.main(["list", "objectives"]) == 0
    assert capsys.readouterr().out == one
    assert one.startswith("objectives\n  bapo")


def test_a_reader_that_has_seen_enough_ends_a_listing_in_silence():
    command = [sys.executable, "-m", "genrl", "list", "sid"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0
