"""Heap size of garbage-collected runtimes, and detection of a full heap."""

import signal

MB = 1024 * 1024
RESERVED_MB = 64
FULL_RATIO = 0.9
ABORTS = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL})
"""Signals with which a runtime aborts when its heap is full."""


def heap_mb(mem_mb: int) -> int:
    """Return the heap size in MB for a program limited to `mem_mb`.

    It leaves memory for the rest of the process, so that the runtime collects garbage before the
    kernel kills it.
    """
    return max(mem_mb - RESERVED_MB, mem_mb // 2)


def is_exhausted(mem_mb: int, memory_bytes: int | None, signal_number: int) -> bool:
    """Return whether the signal and the peak memory mean that a runtime aborted on a full heap."""
    threshold = FULL_RATIO * heap_mb(mem_mb) * MB
    return signal_number in ABORTS and memory_bytes is not None and memory_bytes >= threshold
