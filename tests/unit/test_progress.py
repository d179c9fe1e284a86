from __future__ import annotations

import pytest

from genrl.progress import SpeedColumn, make_progress, progress_bar


def test_the_speed_is_shown_once_it_is_known() -> None:
    now = [0.0]
    progress = make_progress("users")
    progress.get_time = lambda: now[0]
    task = progress.add_task("rank", total=10)
    column = SpeedColumn("users")
    assert column.render(progress.tasks[0]).plain == ""
    for second in (1.0, 2.0, 3.0):
        now[0] = second
        progress.advance(task, 2)
    assert column.render(progress.tasks[0]).plain == "2.0 users/s"


def test_bars_leave_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("rank", 4, "users") as advance:
        advance(4)
    assert capsys.readouterr().out == ""
