"""How fast the processor's time stamp counter runs, which a guest of an emulator has to be told.

The counter of a machine under TCG is the host's. Its kernel would measure it against an emulated
timer, which fails on a host that is busy, and then it waits for ever.
"""

import ctypes
import functools
import mmap
import platform
import time

READ_COUNTER = bytes.fromhex(
    "0f31"  # rdtsc
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
MEASURE_S = 0.05
TRIES = 3
MAX_DIFFERENCE = 0.01


@functools.cache
def tsc_khz() -> int | None:
    """By the host's clock, within a thousandth; None where this cannot be found out."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids such pages
        return None
    page.write(READ_COUNTER)
    place = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
    try:
        return sorted(_measure(read) for _ in range(TRIES))[TRIES // 2]
    finally:
        del place, read
        page.close()


def guest_tsc_khz(accelerator: str) -> int | None:
    """What a guest has to be told; KVM tells it by itself."""
    return tsc_khz() if accelerator == "tcg" else None


def matches(then: str, accelerator: str) -> bool:
    """Is the counter as fast as it was `then`, as the manifest of a snapshot says?"""
    now = guest_tsc_khz(accelerator)
    if now is None or not then.isdecimal():
        return then == str(now)
    return abs(int(then) - now) <= now * MAX_DIFFERENCE


def _measure(read: "ctypes._FuncPointer") -> int:
    before, counted = time.monotonic_ns(), read()
    time.sleep(MEASURE_S)
    after, counted_then = time.monotonic_ns(), read()
    return int((counted_then - counted) * 1_000_000 // (after - before))
