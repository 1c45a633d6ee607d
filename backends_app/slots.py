"""How many workloads a backend runs at once, over all processes of this user on this host.

A slot is a file lock: the kernel frees it when its holder ends, however it ends. Nothing is counted
and nothing has to be repaired.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .exceptions import BackendAtCapacity, BackendUnavailable


@contextmanager
def slot(name: str, limit: int, folder: Path) -> Iterator[None]:
    """Hold one of the `limit` slots of the backend `name`.

    Raises `BackendAtCapacity` at once when all are taken, and `BackendUnavailable` when `folder`
    cannot be used or could be tampered with by another user.
    """
    try:
        _own(folder)
        held = _take(name, limit, folder)
    except OSError as error:
        reason = f"the folder of its slots cannot be used: {error.strerror}"
        raise BackendUnavailable(reason, name=name) from error
    if held is None:
        raise BackendAtCapacity(name, limit)
    try:
        yield
    finally:
        # Closing would not do: a child between fork and exec still has the same open file.
        fcntl.flock(held, fcntl.LOCK_UN)
        os.close(held)


def _take(name: str, limit: int, folder: Path) -> int | None:
    """The descriptor of a file that is locked now, or None when every slot is taken."""
    for number in range(limit):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(folder / f"{name}.{number}.slot", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        else:
            return descriptor
    return None


def _own(folder: Path) -> None:
    """Make the folder, and refuse one that somebody else has made or may write to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(1, "it is not this user's alone")
