from dataclasses import asdict

from genrl import cli
from genrl.objectives import OBJECTIVES


def test_fit_hands_over_configuration_and_command(run_module):
    assert cli.main(["fit", "--objective", "gbpo", "rl.max_steps=3", "--resume", 'prompt.prefix="a b"']) == 0
    ((name, (config,), options),) = run_module.calls
    assert (name, config.rl.max_steps, options["resume"]) == ("fit", 3, True)
    assert config.objective == {"name": "gbpo", **asdict(OBJECTIVES.entry("gbpo").config())}
    assert (
        options["command"] == """python -m genrl fit --objective gbpo rl.max_steps=3 --resume 'prompt.prefix="a b"'"""
    )
