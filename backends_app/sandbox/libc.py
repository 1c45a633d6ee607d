"""Access to the C library, for system calls that Python does not wrap."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 15, 22, 38


def os_error(call: str) -> OSError:
    """Return the last call's errno as an `OSError`."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def check(call: str, result: int) -> None:
    """Raise `OSError` unless the call returned 0."""
    if result != 0:
        raise os_error(call)


def prctl(option: int, argument: int = 0, second: object = None) -> None:
    """Call prctl(2), with every argument as wide as the kernel reads it."""
    pointer = ctypes.c_ulong(0) if second is None else second
    rest = (ctypes.c_ulong(0), ctypes.c_ulong(0))
    check(f"prctl({option})", libc.prctl(option, ctypes.c_ulong(argument), pointer, *rest))
