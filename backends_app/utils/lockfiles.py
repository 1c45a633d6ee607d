"""Locks on files and folders: the kernel releases them when their holder exits, however it exits.

Standard library only: the parent of gunicorn's workers imports this, and its imports are stale
after a reload.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPEN = os.O_RDWR
CREATE = os.O_RDWR | os.O_CREAT
FOLDER = os.O_RDONLY | os.O_DIRECTORY


def try_lock(path: Path, flags: int = CREATE, *, shared: bool = False) -> int | None:
    """Lock the file and return its descriptor, or None when another process holds the lock.

    If the file is removed between opening and locking, try again: no other process would find it.
    A forked child shares the lock until it closes the descriptor or executes a program.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            if _is_current(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Unlock, then close: a child between fork and exec still shares the open file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def locked(path: Path, flags: int = CREATE) -> Iterator[None]:
    """Wait for the lock of a file that nobody removes, and hold it inside the block."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        unlock(descriptor)


def ensure_private_dir(folder: Path) -> None:
    """Create the folder; raise `PermissionError` when another user owns or can access it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(1, "it must belong to this user with mode 0700")


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
