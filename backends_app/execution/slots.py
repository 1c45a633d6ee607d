"""Slots and workload locks: file locks over all processes of this user on this host.

A backend has as many slots as it may run workloads at once. A workload lock is held by the process
that works on the workload. The kernel releases both when their holder exits, however it exits, so
there is no counter to repair.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..exceptions import BackendAtCapacity, BackendUnavailable, HostFault
from ..utils.lockfiles import OPEN, ensure_private_dir, try_lock, unlock

LOCK_SUFFIX = ".running"
POLL_INTERVAL_S = (0.005, 0.05)  # while waiting for a slot: initial, maximum


@contextmanager
def acquire_slot(name: str, limit: int, folder: Path) -> Iterator[None]:
    """Hold one of the `limit` slots of the backend `name`.

    Raise `BackendAtCapacity` at once when all are in use or another process waits for one, and
    `BackendUnavailable` when `folder` is unusable or another user could tamper with it.
    """
    with _unusable_as_unavailable(name, folder):
        turn = try_lock(_turn_file(name, folder), shared=True)
        lock = None
        if turn is not None:
            try:
                lock = _lock_free_slot(name, limit, folder)
            finally:
                unlock(turn)
    if lock is None:
        raise BackendAtCapacity(name, limit)
    try:
        yield
    finally:
        unlock(lock)


@contextmanager
def wait_for_slot(
    name: str, limit: int, folder: Path, should_stop: Callable[[], bool]
) -> Iterator[bool]:
    """Wait for a slot and hold it, as `acquire_slot` does; yield False when `should_stop()`.

    One of the waiting processes holds the turn and gets the next slot; none can overtake it.
    """
    turn = lock = None
    pause, longest = POLL_INTERVAL_S
    try:
        with _unusable_as_unavailable(name, folder):
            while lock is None:
                turn = try_lock(_turn_file(name, folder)) if turn is None else turn
                lock = _lock_free_slot(name, limit, folder) if turn is not None else None
                if lock is None:
                    if should_stop():
                        break
                    time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                    pause = min(2 * pause, longest)
            if turn is not None:
                unlock(turn)
                turn = None
        yield lock is not None
    finally:
        for descriptor in (turn, lock):
            if descriptor is not None:
                unlock(descriptor)


@contextmanager
def workload_lock(workload_id: str, folder: Path) -> Iterator[bool]:
    """Hold the lock of a workload; yield False when another process holds it.

    Raise `HostFault` when `folder` is unusable or another user could tamper with it.
    """
    try:
        ensure_private_dir(folder)
        file = _lock_file(workload_id, folder)
        lock = try_lock(file)
    except OSError as error:
        raise unusable(folder, error) from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            file.unlink(missing_ok=True)
            unlock(lock)


def is_locked(workload_id: str, folder: Path) -> bool:
    """Return whether a process of this user on this host holds the lock of the workload."""
    try:
        lock = try_lock(_lock_file(workload_id, folder), OPEN)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    unlock(lock)
    return False


def remove_stale_locks(folder: Path) -> int:
    """Remove the lock files of processes that were killed; return how many there were.

    A process that locks one of them at the same moment finds its file gone and creates another; see
    `lockfiles.try_lock`.
    """
    removed = 0
    for file in folder.glob(f"*{LOCK_SUFFIX}"):
        try:
            lock = try_lock(file, OPEN)
        except OSError:  # removed in the meantime, or not ours
            continue
        if lock is not None:
            file.unlink(missing_ok=True)
            unlock(lock)
            removed += 1
    return removed


def slots_in_use(name: str, limit: int, folder: Path) -> int:
    """Return how many of the `limit` slots of the backend `name` are in use on this host.

    Read from the kernel's list of locks: trying the locks would hold each for a moment.
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
    """Raise `BackendUnavailable` when the folder of the slots is unusable."""
    try:
        ensure_private_dir(folder)
        yield
    except OSError as error:
        reason = f"its slot folder is unusable: {error.strerror}"
        raise BackendUnavailable(reason, name=name) from error


def _lock_file(workload_id: str, folder: Path) -> Path:
    return folder / f"{workload_id}{LOCK_SUFFIX}"


def _lock_free_slot(name: str, limit: int, folder: Path) -> int | None:
    """Lock a free slot and return its file descriptor, or None when all are in use."""
    every = map(try_lock, _slots(name, limit, folder))
    return next((lock for lock in every if lock is not None), None)


def unusable(folder: Path, error: OSError) -> HostFault:
    """Return the error for a runtime folder that is unusable."""
    return HostFault(f"the runtime folder {folder} is unusable: {error.strerror}")
