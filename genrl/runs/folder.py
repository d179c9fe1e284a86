"""Whose a run folder is: made by one configuration, finished or not, and never overwritten by another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from genrl.config.load import save_config
from genrl.config.saved import INPUTS, keep_plugins
from genrl.config.schema import RunConfig
from genrl.errors import CheckpointError, ConfigError, FolderError, unwritable
from genrl.files import is_locked, locked, read_json, refuse_links, sweep, write_json, write_text
from genrl.manifest import METRICS
from genrl.runs.inputs import flat, input_files
from genrl.runs.record import versions
from genrl.training.fitting import is_first

UNIMPORTANT = (
    "output",
    "trainer.threads",
    "trainer.log_every",
    "trainer.strategy",
    "trainer.max_skipped_steps",
    "trainer.checkpoint_steps",
    "trainer.checkpoint_minutes",
)
ROUNDING = ("rollout.micro_batch", "trainer.branching", "trainer.checkpointing", "trainer.compile")
"""Options that do not make another run: the former change no number, the latter none by more than rounding."""


def is_finished(folder: Path, config: RunConfig, resume: bool) -> bool:
    """Whether the run folder holds this very run, finished; writes nothing.

    Raises:
        ConfigError: if it holds another configuration, was made from files that have other contents now, or holds an
            unfinished run that is not to be resumed.
    """
    saved = folder / "config.yaml"
    if not is_first() or not saved.exists():
        return False
    changed = differences(saved, config)
    if changed:
        raise ConfigError(
            f"{folder} already holds another configuration; it differs in {', '.join(changed)}. Nothing was "
            f"written. Choose another experiment=NAME or seed=N, or remove the folder."
        )
    inputs = folder / "inputs.json"
    before = read_json(inputs) if inputs.exists() else {}
    now = input_files(config) if before else {}
    other = [f"{name} ({path})" for name, (path, digest) in now.items() if before.get(name, digest) != digest]
    if other:
        raise ConfigError(
            f"{folder} was begun when {', '.join(other)} had another content. Nothing was written. Choose another "
            f"experiment=NAME or name=NAME, remove the folder, or bring the old content back."
        )
    if (folder / METRICS).exists():
        return True
    if not resume and is_locked(folder):
        raise ConfigError(
            f"another process is at work in {folder} and makes this very run. Nothing was written. Wait until it has "
            f"ended, or choose another seed=N or name=NAME to make a run of your own."
        )
    if not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run of this configuration. Add --resume to go on with it, or remove the "
            f"folder."
        )
    return False


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one message that a run can no longer be written.

    Raises:
        FolderError: if its disk is full, or it may not be written to.
    """
    before = threading.excepthook

    def hear(about: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands its error on to whoever writes next; a traceback of its own says no more."""
        if not (type(about.thread).__name__ == "_AsyncWriterThread" and isinstance(about.exc_value, OSError)):
            before(about)

    threading.excepthook = hear
    try:
        yield
    except Exception as error:
        place, kind = getattr(error, "filename", None) or folder, unwritable(error)
        if kind == "full":
            raise FolderError(
                f"the disk is full while writing {place}. What was finished before is whole. Free some space and add "
                f"--resume, or write elsewhere with --output FOLDER."
            ) from error
        if kind == "read-only" and _meet(Path(place), folder.parents[1]):  # not a file of the user's to be read
            raise FolderError(
                f"{place} cannot be written to ({getattr(error, 'strerror', None) or error}). What was finished "
                f"before is whole. Make {folder} writable and add --resume, or write elsewhere with --output FOLDER."
            ) from error
        raise
    finally:
        threading.excepthook = before


def _meet(one: Path, other: Path) -> bool:
    """Whether one of two places lies in the other, or is it."""
    first, second = one.absolute(), other.absolute()
    return first.is_relative_to(second) or second.is_relative_to(first)


@contextmanager
def lasting(folder: Path) -> Iterator[None]:
    """Blame whatever goes wrong inside on a claimed folder that is no longer there.

    Raises:
        FolderError: if it was removed or moved while the run was at work.
    """
    try:
        yield
    except Exception as error:
        if (folder / "config.yaml").exists():
            raise
        raise FolderError(
            f"{folder} was removed or moved while the run was at work ({type(error).__name__}). Nothing of the run "
            f"is left there. Give the command again to start anew; or move the folder back and add --resume."
        ) from error


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder of a run or a stage, alone and without links, and sweep up what killed processes have left there.

    Raises:
        CheckpointError: if links are in it.
    """
    refuse_links(folder)
    with locked(folder):
        sweep(folder)
        yield


def claim(folder: Path, config: RunConfig, command: str) -> None:
    """Make an empty run folder ours; config.yaml comes last, so that a folder with it is whole."""
    saved = folder / "config.yaml"
    if saved.exists():
        return
    write_json(folder / "versions.json", versions())
    inputs = {name: digest for name, (_, digest) in input_files(config).items()}
    keep_plugins(folder, config, inputs)
    write_json(folder / INPUTS, inputs)
    write_text(
        folder / "command.txt",
        f"{command or 'started from Python'}\n# the same run again, elsewhere:\n"
        f"python -m genrl fit --config {saved} output=runs-again\n",
    )
    save_config(config, saved)


def differences(saved: Path, config: RunConfig) -> list[str]:
    """Dotted names of what differs between a saved configuration and this one.

    An option that the saved one lacks, being of an earlier version, stands at its default there.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(saved))
    except Exception as error:
        raise CheckpointError(
            f"{saved} is damaged ({type(error).__name__}). Remove the folder and run again."
        ) from error
    now = OmegaConf.to_container(OmegaConf.create(asdict(config)))
    before, after, default = flat(values), flat(now), flat(asdict(RunConfig()))
    names = sorted(before.keys() | after.keys())
    changed = (name for name in names if before.get(name, default.get(name)) != after.get(name))
    return [name for name in changed if name not in (*UNIMPORTANT, *ROUNDING)]
