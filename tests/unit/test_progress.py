import pytest

from genrl.progress import Display, progress_bar


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_terminal_a_line_comes_soon_and_then_every_minute(clock, capsys):
    with Display(clock=clock) as display:
        task = display.add("rank", 1000, "users")
        for second in range(1, 131):
            clock.now = float(second)
            display.move(task, 2 * second, note="loss 1.5")
    assert capsys.readouterr().err.splitlines() == [
        "rank: 10 of 1,000 users, 2.0 users/s, 0:08:15 left, loss 1.5",
        "rank: 130 of 1,000 users, 2.0 users/s, 0:07:15 left, loss 1.5",
        "rank: 250 of 1,000 users, 2.0 users/s, 0:06:15 left, loss 1.5",
    ]


def test_what_is_slow_or_of_unknown_length_is_told_too(clock, capsys):
    with Display(clock=clock) as display:
        task = display.add("  grpo-s0", None, "steps")
        for step in range(3):
            clock.now = 20.0 * step
            display.move(task, step)
        display.move(task, 2, tell=True)
    assert capsys.readouterr().err.splitlines() == [
        "  grpo-s0: 1 steps",
        "  grpo-s0: 2 steps, 3.0 steps/min",
    ]


def test_what_ends_within_seconds_says_nothing_and_standard_output_is_left_alone(capsys):
    with progress_bar("rank", 4, "users") as advance:
        advance(4)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_a_terminal_gets_bars(clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes any stream for a terminal
    with Display(clock=clock) as display:
        task = display.add("rank", 4, "users")
        clock.now = 100.0
        display.move(task, 4, note="loss 1.5")
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss 1.5" in shown
    assert "4 of 4" not in shown
