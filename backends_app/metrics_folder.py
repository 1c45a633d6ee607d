"""The folder in which all processes of one server count together, as prometheus_client wants it.

It is new for each server, so that nothing is counted twice, and locked as long as one of its
processes lives; what a server that was killed has left behind is removed by the next one.

Standard library only: the parent of gunicorn's workers imports this, and whatever it imports is old
after a reload.
"""

import fcntl
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENV_VAR = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for it, in the moment when it is imported."""

PREFIX = "metrics."


@functools.cache
def create(parent: Path) -> Path:
    """A new folder in `parent`, which has to be this user's alone; one for each process that asks.

    Processes that fork off keep its lock.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{parent} is not this user's alone; name another RUNTIME_DIR")
    with _alone(parent):
        for left in parent.glob(f"{PREFIX}*/"):
            if (held := _locked(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        _locked(folder)
    return folder


def remove(folder: Path) -> None:
    """For the end of the server."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """No other server makes or removes folders meanwhile."""
    held = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of the folder, or None where another has it."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held
