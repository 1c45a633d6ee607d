"""Sinks for the output of a process."""

from collections.abc import Callable
from typing import Protocol

from ..utils import utf8
from ..workloads import LOSSY, UTF8


class Sink(Protocol):
    """Receiver of a stream's bytes as they are read; must keep its own size bounded."""

    def write(self, data: bytes) -> None: ...


class Capture:
    """Sink that keeps the head and the tail of a stream, at most `limit` bytes in all.

    `on_output`, if given, receives all bytes as they arrive.
    """

    def __init__(self, limit: int, on_output: Callable[[bytes], None] | None = None) -> None:
        self._half = max(1, limit // 2)
        self._on_output = on_output
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def write(self, data: bytes) -> None:
        if self._on_output is not None:
            self._on_output(data)
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def empty(self) -> bool:
        return self._total == 0

    @property
    def truncated(self) -> bool:
        return self._total > 2 * self._half

    @property
    def encoding(self) -> str:
        """`UTF8` if `text` is exactly what was printed, `LOSSY` if some of it is not UTF-8."""
        try:
            for part in self._parts():
                part.decode()
        except UnicodeDecodeError:
            return LOSSY
        return UTF8

    def text(self) -> str:
        """Return the captured text, cut between characters; one line replaces the omitted part."""
        head, *rest = self._parts()
        text = head.decode(errors="replace")
        for tail in rest:
            cut = self._total - len(head) - len(tail)
            text += f"\n… {cut:,} bytes cut …\n{tail.decode(errors='replace')}"
        return text

    def _parts(self) -> list[bytes]:
        """Return the whole stream, or its head and its tail."""
        head, tail = bytes(self._head), bytes(self._tail[-self._half :])
        if not self.truncated:
            return [head + tail]
        return [head[: utf8.whole_end(head)], tail[utf8.whole_start(tail) :]]
