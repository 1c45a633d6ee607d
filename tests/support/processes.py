"""Inspect processes by /proc."""

import os


def children(parent: int) -> set[int]:
    """Return the children of a process that it has not reaped."""
    found: set[int] = set()
    try:
        tasks = os.listdir(f"/proc/{parent}/task")
    except FileNotFoundError:
        return found
    for task in tasks:
        try:
            with open(f"/proc/{parent}/task/{task}/children") as file:
                found.update(int(pid) for pid in file.read().split())
        except (FileNotFoundError, ProcessLookupError):  # of a thread that has just ended
            pass
    return found


def gone(pid: int) -> bool:
    """Return whether the process has ended, reaped or not."""
    return state(pid) in "ZX"


def state(pid: int) -> str:
    """Return the letter of the process's state in proc(5); "X" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def broken(pid: int) -> bool:
    """Return whether the process has ended or is stopped. A signal takes effect some time later."""
    return state(pid) in "ZXT"
