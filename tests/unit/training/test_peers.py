"""Which processes are at work, and that a broken connection is told in one line."""

import os
import subprocess
import sys

import pytest

from genrl.errors import LostError
from genrl.training import peers
from genrl.training.peers import alive, together


def test_a_process_is_alive_until_its_end_also_before_its_parent_has_noticed():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert alive(os.getpid())
    assert alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # what is left is a zombie
    assert not alive(process.pid)
    process.communicate()
    assert not alive(process.pid)


@pytest.mark.parametrize(
    ("world", "said", "raised"),
    [
        (2, "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", LostError),
        (1, "Connection closed by peer", RuntimeError),
        (2, "shapes do not fit", RuntimeError),
    ],
)
def test_only_a_broken_connection_is_said_to_be_one(monkeypatch, world, said, raised):
    monkeypatch.setattr(peers, "world_size", lambda: world)
    monkeypatch.setattr(peers, "_watch", peers._Watch())
    with pytest.raises(raised) as caught, together():
        raise RuntimeError(said)
    assert (type(caught.value) is LostError) == (raised is LostError)
