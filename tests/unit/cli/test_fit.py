from dataclasses import asdict

import pytest

from genrl import cli
from genrl.objectives import OBJECTIVES


@pytest.mark.parametrize("flag", [["--resume"], ["--resume", "auto"], ["--resume=auto"]])
def test_a_flag_to_go_on_swallows_no_override(run_module, flag):
    assert cli.main(["fit", *flag, "seed=7"]) == 0
    ((_, (config,), options),) = run_module.calls
    assert (config.seed, options["resume"]) == (7, True)


def test_fit_hands_over_configuration_and_command(run_module):
    assert cli.main(["fit", "--objective", "gbpo", "rl.max_steps=3", "--resume", 'prompt.prefix="a b"']) == 0
    ((name, (config,), options),) = run_module.calls
    assert (name, config.rl.max_steps, options["resume"]) == ("fit", 3, True)
    assert config.objective == {"name": "gbpo", **asdict(OBJECTIVES.entry("gbpo").config())}
    assert (
        options["command"] == """python -m genrl fit --objective gbpo rl.max_steps=3 --resume 'prompt.prefix="a b"'"""
    )
