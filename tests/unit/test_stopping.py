import os
import signal
import subprocess
import sys
import threading

import pytest

from genrl.errors import Stopped
from genrl.stopping import SIGNALS, answer, ask, asked, handled, patient

TWICE = """
import os, signal
from genrl.stopping import handled, patient
with handled(), patient():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def send(number: int) -> None:
    """A signal to this process, which Python answers before the next line."""
    os.kill(os.getpid(), number)


def test_ctrl_c_and_what_schedulers_send_are_answered():
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} == set(SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_where_it_arrives_and_names_the_exit_code(number):
    done = []

    def work() -> None:
        with handled():
            send(number)
            done.append("went on")

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match=signal.Signals(number).name) as stopped:
        work()
    assert done == []
    assert stopped.value.code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_whoever_is_patient_ends_its_step_first(capfd):
    seen = []

    def work() -> None:
        with handled(), patient():
            seen.append(asked())
            send(signal.SIGTERM)
            seen.append(asked())
            send(signal.SIGINT)  # another one, as a terminal and a comparison send both: the first stands
            seen.append(asked())

    with pytest.raises(Stopped) as stopped:
        work()
    assert seen == [0, signal.SIGTERM, signal.SIGTERM]
    assert stopped.value.code == 143
    assert "SIGTERM: stopping at the end of this step" in capfd.readouterr().err


def test_what_another_process_was_asked_stops_this_one_too():
    def work() -> None:
        with handled(), patient():
            ask(signal.SIGUSR1)
            ask(signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGUSR1"):
        work()


def test_the_handlers_of_a_library_are_taken_back():
    def work() -> None:
        with handled():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            answer()
            send(signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped):
        work()
    answer()  # outside there is nothing to take back
    assert signal.getsignal(signal.SIGUSR1) == before


def test_inside_another_nothing_changes_and_a_new_one_begins_unasked():
    def inner() -> None:
        with handled():
            send(signal.SIGTERM)

    with handled():
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Stopped):
            inner()
        assert signal.getsignal(signal.SIGTERM) == handler
        assert asked() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) != handler
    with handled():
        assert asked() == 0


def test_other_threads_have_no_signals():
    seen = []

    def work() -> None:
        with handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_same_signal_again_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert "SIGTERM again: ended at once." in done.stderr
