"""How large the heap of a runtime may grow that collects its garbage, and whether it was full."""

import signal

MB = 1024 * 1024
RESERVED_MB = 64
FULL_RATIO = 0.9
ABORTS = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL})
"""How a runtime ends that gives up."""


def heap_mb(mem_mb: int) -> int:
    """Return the size of the heap for a program that may use so much memory.

    Something is left for the rest of the process, so that it collects before the kernel ends it.
    """
    return max(mem_mb - RESERVED_MB, mem_mb // 2)


def is_exhausted(mem_mb: int, memory_bytes: int | None, signal_number: int) -> bool:
    """Tell from a signal and the most that was used whether a runtime gave up for a full heap."""
    most = FULL_RATIO * heap_mb(mem_mb) * MB
    return signal_number in ABORTS and memory_bytes is not None and memory_bytes >= most
