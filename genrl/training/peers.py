"""The other processes of a run: when one of them is gone, the others end as well, and one of them says so."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback

from genrl.errors import LostError
from genrl.ops import world_rank, world_size
from genrl.stopping import tell

EVERY = 1.0
"""Seconds between two looks."""
BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "timed out", "NCCL", "remote process")
"""What back ends say when another process does not answer any more."""
REMEDY = (
    "so this one ends as well. What was trained until the last checkpoint is kept: give the same command with --resume."
)


class _Watch:
    """This process's eye on the others of the run; one for all stages, as the group of processes is."""

    def __init__(self) -> None:
        self.peers: dict[int, int] = {}
        """Rank -> process id of the others on this machine."""
        self.ended = threading.Event()
        self.told = threading.Lock()

    def start(self) -> None:
        """Learn who the others are, all of them together, and look after them from now on."""
        here, everyone = (_machine(), os.getpid()), [("", 0)] * world_size()
        torch.distributed.all_gather_object(everyone, here)
        self.peers = {
            rank: pid for rank, (machine, pid) in enumerate(everyone) if machine == here[0] and pid != here[1]
        }
        self.ended.clear()
        threading.Thread(target=self._look, args=(world_rank(),), daemon=True, name="peers").start()

    def _look(self, rank: int) -> None:
        while not self.ended.wait(EVERY):
            gone = [peer for peer, pid in self.peers.items() if not alive(pid)]
            if gone and not self.ended.is_set() and self.told.acquire(blocking=False):
                if not any(peer < rank for peer in self.peers if peer not in gone):
                    tell(f"\ngenrl: process {gone[0]} of this run (pid {self.peers[gone[0]]}) is gone, {REMEDY}\n")
                os._exit(2)


_watch = _Watch()


class Peers(Callback):
    """Begins to look after the other processes once they are known to each other."""

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Before anything is trained."""
        if world_size() > 1 and not _watch.peers:
            _watch.start()


@contextmanager
def together() -> Iterator[None]:
    """A block with the training of a run, which all of its processes leave together, or none.

    Raises:
        LostError: if the connection to another one has broken.
    """
    try:
        yield
        _watch.ended.set()  # who is done from here on may leave
        if world_size() > 1:
            torch.distributed.barrier()
    except (RuntimeError, OSError) as error:
        if world_size() == 1 or not any(words in str(error) for words in BROKEN):
            raise
        if not _watch.told.acquire(blocking=False):
            threading.Event().wait()  # the other thread is ending this process
        raise LostError(f"the connection to another process of this run is broken, {REMEDY}") from error
    finally:
        _watch.ended.set()
        _watch.peers = {}


def alive(pid: int) -> bool:
    """Whether a process of this machine is at work: there, and not merely waiting for its parent to notice its end."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _machine() -> str:
    """Of processes that see each other's ids."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space}"
