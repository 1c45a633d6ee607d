"""Measure the frequency of the processor's time stamp counter, which TCG guests need to be given.

The counter of a machine under TCG is the host's. Its kernel would measure it against an emulated
timer, which fails on a busy host, and then the guest hangs.
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
    """Return the frequency in kHz, accurate to 0.1 %, or None if it cannot be measured."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids such pages
        return None
    page.write(READ_COUNTER)
    start = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
    try:
        return sorted(_measure(read) for _ in range(TRIES))[TRIES // 2]
    finally:
        del start, read
        page.close()


def guest_tsc_khz(accelerator: str) -> int | None:
    """Return the frequency to pass to a guest, or None: KVM provides it by itself."""
    return tsc_khz() if accelerator == "tcg" else None


def matches(recorded_khz: str, accelerator: str) -> bool:
    """Return whether the frequency is the one that the manifest of a snapshot recorded."""
    now = guest_tsc_khz(accelerator)
    if now is None or not recorded_khz.isdecimal():
        return recorded_khz == str(now)
    return abs(int(recorded_khz) - now) <= now * MAX_DIFFERENCE


def _measure(read: "ctypes._FuncPointer") -> int:
    before, counted = time.monotonic_ns(), read()
    time.sleep(MEASURE_S)
    after, counted_then = time.monotonic_ns(), read()
    return int((counted_then - counted) * 1_000_000 // (after - before))
