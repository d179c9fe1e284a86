import pytest

from genrl.config import load_config
from genrl.runs.stages import supervised_stages, thinks, writes_slates


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["layout=blocked"], ["align", "activate"]),
        (["layout=blocked", "stages=[align,rl]"], ["align"]),
        (["layout=blocked", "stages=[activate,rl]"], ["activate"]),
        (["layout=slate"], ["align", "activate"]),
        (["layout=sid"], ["align"]),  # nothing to activate
        (["layout=sid", "stages=[rl]"], []),
    ],
)
def test_only_what_there_is_to_teach_is_taught(overrides, wanted):
    assert supervised_stages(load_config(overrides=["stages=[align,activate,rl]", *overrides])) == wanted


def test_the_layout_says_whether_completions_are_slates():
    assert writes_slates(load_config(overrides=["layout=slate"]))
    assert not writes_slates(load_config(overrides=["layout=blocked"]))


def test_the_layout_says_whether_completions_hold_thinking():
    assert thinks(load_config(overrides=["layout=blocked"]))
    assert not thinks(load_config(overrides=["layout=sid"]))
