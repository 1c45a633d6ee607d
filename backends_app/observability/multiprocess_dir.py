"""Create the folder in which all processes of one server store their metrics together.

prometheus_client requires such a folder. It is new for each server, so that nothing is counted
twice, and locked while one of the server's processes lives. The next server removes what a killed
one has left behind.

Standard library only: the parent of gunicorn's workers imports this, and its imports are stale
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
"""Where prometheus_client looks for the folder, at its import."""

PREFIX = "metrics."


@functools.cache
def create(parent: Path) -> Path:
    """Create and lock a new folder in `parent` and return it; the same one for each later call.

    Forked processes keep the lock. Raise `PermissionError` when another user owns or can access
    `parent`.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{parent} must belong to this user with mode 0700; set another RUNTIME_DIR"
        )
    with _parent_lock(parent):
        for leftover in parent.glob(f"{PREFIX}*/"):
            if (descriptor := _try_lock(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(descriptor)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        _try_lock(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove the folder, at the end of the server."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _parent_lock(parent: Path) -> Iterator[None]:
    """Keep other servers from creating or removing folders inside the block."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    """Lock the folder and return the descriptor, or None when another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
