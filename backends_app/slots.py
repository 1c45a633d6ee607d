"""Locks that hold over all processes of this user on this host, and end with their holder.

A slot is one of as many as a backend may run workloads at once; a mark is the sign of life of one
workload. Both are file locks: the kernel frees them when their holder ends, however it ends.
Nothing is counted and nothing has to be repaired.
"""

import fcntl
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .exceptions import BackendAtCapacity, BackendUnavailable, HostFault

LOCK_SUFFIX = ".running"
POLL_INTERVAL_S = (0.005, 0.05)  # of a slot that is waited for: at first, and at most


@contextmanager
def acquire_slot(name: str, limit: int, folder: Path) -> Iterator[None]:
    """Hold one of the `limit` slots of the backend `name`.

    Raises `BackendAtCapacity` at once when all are taken or somebody waits for one, and
    `BackendUnavailable` when `folder` cannot be used or could be tampered with by another user.
    """
    with _unusable_as_unavailable(name, folder):
        turn = _try_lock(_turn_file(name, folder), shared=True)
        held = None
        if turn is not None:
            try:
                held = _lock_free_slot(name, limit, folder)
            finally:
                _unlock(turn)
    if held is None:
        raise BackendAtCapacity(name, limit)
    try:
        yield
    finally:
        _unlock(held)


@contextmanager
def wait_for_slot(
    name: str, limit: int, folder: Path, should_stop: Callable[[], bool]
) -> Iterator[bool]:
    """Hold a slot as `slot` does, and wait for it; False when `give_up` said to wait no more.

    Of those that wait, one holds the turn and takes the next slot. Nobody passes it.
    """
    turn = held = None
    pause, longest = POLL_INTERVAL_S
    try:
        with _unusable_as_unavailable(name, folder):
            while held is None:
                turn = _try_lock(_turn_file(name, folder)) if turn is None else turn
                held = _lock_free_slot(name, limit, folder) if turn is not None else None
                if held is None:
                    if should_stop():
                        break
                    time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                    pause = min(2 * pause, longest)
            if turn is not None:
                _unlock(turn)
                turn = None
        yield held is not None
    finally:
        for descriptor in (turn, held):
            if descriptor is not None:
                _unlock(descriptor)


@contextmanager
def workload_lock(workload_id: str, folder: Path) -> Iterator[bool]:
    """Show that this process works on the workload; False when another one already does.

    Raises `HostFault` when `folder` cannot be used or could be tampered with by another user.
    """
    try:
        ensure_private_dir(folder)
        file = _lock_file(workload_id, folder)
        held = _try_lock(file)
    except OSError as error:
        raise unusable(folder, error) from error
    try:
        yield held is not None
    finally:
        if held is not None:
            file.unlink(missing_ok=True)
            _unlock(held)


def is_locked(workload_id: str, folder: Path) -> bool:
    """Does a process of this user on this host work on the workload?"""
    try:
        held = _try_lock(_lock_file(workload_id, folder), make=False)
    except FileNotFoundError:
        return False
    if held is None:
        return True
    _unlock(held)
    return False


def remove_stale_locks(folder: Path) -> int:
    """Remove the marks whose holders were killed before they could; how many there were.

    Whoever takes a mark at the same moment finds its file gone and makes another; see `_locked`.
    """
    removed = 0
    for file in folder.glob(f"*{LOCK_SUFFIX}"):
        try:
            held = _try_lock(file, make=False)
        except OSError:  # gone meanwhile, or none of ours
            continue
        if held is not None:
            file.unlink(missing_ok=True)
            _unlock(held)
            removed += 1
    return removed


def slots_in_use(name: str, limit: int, folder: Path) -> int:
    """How many of the `limit` slots of the backend `name` are taken now on this host.

    Read from the kernel's list of locks: to try them would take them from others for a moment.
    """
    locked = {
        int(words[5].rpartition(":")[2])
        for words in map(str.split, Path("/proc/locks").read_text().splitlines())
        if len(words) > 5 and words[1] == "FLOCK"
    }
    files = (file for file in _slots(name, limit, folder) if file.exists())
    return sum(file.stat().st_ino in locked for file in files)


def _slots(name: str, limit: int, folder: Path) -> Iterator[Path]:
    return (folder / f"{name}.{number}.slot" for number in range(limit))


def _turn_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.turn"


@contextmanager
def _unusable_as_unavailable(name: str, folder: Path) -> Iterator[None]:
    """Raise `BackendUnavailable` when the folder of the slots cannot be used."""
    try:
        ensure_private_dir(folder)
        yield
    except OSError as error:
        reason = f"the folder of its slots cannot be used: {error.strerror}"
        raise BackendUnavailable(reason, name=name) from error


def _lock_file(workload_id: str, folder: Path) -> Path:
    return folder / f"{workload_id}{LOCK_SUFFIX}"


def _lock_free_slot(name: str, limit: int, folder: Path) -> int | None:
    """The descriptor of a file that is locked now, or None when every slot is taken."""
    every = map(_try_lock, _slots(name, limit, folder))
    return next((held for held in every if held is not None), None)


def _try_lock(file: Path, *, make: bool = True, shared: bool = False) -> int | None:
    """The descriptor of the file, which is locked now, or None when it was before.

    A file that was removed between opening and locking it is no lock: nobody else would find it.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    while True:
        descriptor = os.open(file, flags, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_current(file, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        _unlock(descriptor)


def _is_current(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unlock(held: int) -> None:
    """Closing would not do: a child between fork and exec still has the same open file."""
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)


def unusable(folder: Path, error: OSError) -> HostFault:
    return HostFault(f"the runtime folder {folder} cannot be used: {error.strerror}")


def ensure_private_dir(folder: Path) -> None:
    """Make the folder, and refuse one that somebody else has made or may write to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(1, "it is not this user's alone")
