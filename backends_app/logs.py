"""What workloads print: gathered line by line while they run, kept within bounds, read again.

Lines are numbered from 1 over both streams, in the order in which the host got them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import utf8
from .models import LogBlock, Workload
from .workloads import STREAMS

MAX_LINES = 10_000
MAX_LINE_BYTES = 16 * 1024
FLUSH_AFTER_S = 0.5
HOST = "host"
"""The stream of what Vulcan itself has to say in a log."""
FULL = "… the log is full: what follows is not kept …"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of one stream, each with its end; `first` is the number of the first one."""

    first: int
    stream: str
    text: str
    lines: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end."""

    number: int
    stream: str
    text: str


class LogBuffer:
    """Takes bytes as they come and gives blocks of whole lines; at most `most_bytes` in all.

    A line that does not end, or not soon, is broken into several, between characters. Of what a
    carriage return goes back over, the last is kept, as a terminal would show it. `first` is the
    number of the first line. One thread hears and another takes.
    """

    def __init__(
        self, max_bytes: int, first: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._partial_since = dict.fromkeys(STREAMS, 0.0)
        self._flushed: set[str] = set()  # the streams whose last line was shown before it ended
        self._left_bytes = max_bytes
        self._left_lines = MAX_LINES
        self._partial = dict.fromkeys(STREAMS, b"")
        self._ready: list[Block] = []
        self._sealed = 0  # how many of these somebody is storing: nothing is added to them
        self._first = self._next = first

    @property
    def empty(self) -> bool:
        """Has nothing been heard at all?"""
        return self._next == self._first and not any(self._partial.values())

    def write(self, stream: str, data: bytes) -> None:
        with self._lock:
            if self._full or stream not in self._partial:
                return
            partial = self._partial[stream]
            said = partial + data
            if stream in self._flushed:
                rest = said.lstrip(b"\r")
                if not rest:
                    self._partial[stream] = b"\r"
                    return
                self._flushed.discard(stream)
                said = rest[1:] if rest.startswith(b"\n") else said  # its end is there already
            whole, end, rest = said.rpartition(b"\n")
            rest = _overwritten(rest)
            while len(rest) > MAX_LINE_BYTES and len(whole) < self._left_bytes:
                cut = utf8.whole_end(rest[:MAX_LINE_BYTES])
                whole, end = whole + end + rest[:cut], b"\n"
                rest = rest[cut:]
            if end or not partial:
                self._partial_since[stream] = self._clock()
            self._partial[stream] = rest
            if end:
                self._append(stream, whole + end)

    def close(self) -> None:
        """The program has ended: what was begun is a line."""
        with self._lock:
            for stream, rest in self._partial.items():
                if rest.strip(b"\r"):
                    self._append(stream, rest + b"\n")
                self._partial[stream] = b""

    def pending_blocks(self) -> Sequence[Block]:
        """The blocks that nobody has stored yet.

        A line that was begun half a second ago is shown as it is: a prompt, a row of dots. What
        comes after it is a line of its own.
        """
        with self._lock:
            shown = self._clock() - FLUSH_AFTER_S
            for stream, partial in self._partial.items():
                end = utf8.whole_end(partial)
                if partial[:end].strip(b"\r") and self._partial_since[stream] <= shown:
                    self._partial[stream] = partial[end:]
                    if end == len(partial):
                        self._flushed.add(stream)
                    self._append(stream, partial[:end] + b"\n")
            self._sealed = len(self._ready)
            return tuple(self._ready)

    def acknowledge(self, count: int) -> None:
        """The first `count` blocks are kept elsewhere now."""
        with self._lock:
            del self._ready[:count]
            self._sealed -= count

    @property
    def _full(self) -> bool:
        return self._left_bytes <= 0 or self._left_lines <= 0

    def _append(self, stream: str, data: bytes) -> None:
        if self._full:
            return
        kept = data[: self._left_bytes]
        if len(kept) < len(data):
            kept = kept[: utf8.whole_end(kept)]
        if b"\r" in kept:
            kept = b"\n".join(_overwritten(line).rstrip(b"\r") for line in kept.split(b"\n"))
        lines = kept.count(b"\n")
        if lines > self._left_lines:
            kept = b"\n".join(kept.split(b"\n", self._left_lines)[:-1]) + b"\n"
        if not kept.endswith(b"\n"):
            kept += b"\n"
        self._left_bytes -= len(data)
        self._left_lines -= lines
        self._add(stream, kept.decode(errors="replace"))
        if self._full:
            self._add(HOST, f"{FULL}\n")

    def _add(self, stream: str, text: str) -> None:
        lines = text.count("\n")
        last = self._ready[-1] if len(self._ready) > self._sealed else None
        if last is not None and last.stream == stream:
            self._ready[-1] = replace(last, text=last.text + text, lines=last.lines + lines)
        else:
            self._ready.append(Block(self._next, stream, text, lines))
        self._next += lines


def _overwritten(line: bytes) -> bytes:
    """Return what a terminal would show of a line with carriage returns."""
    return line[line.rstrip(b"\r").rfind(b"\r") + 1 :]


def store(workload_id: str, blocks: Sequence[Block]) -> None:
    """Write blocks that follow each other; inside the caller's transaction."""
    LogBlock.objects.bulk_create(
        LogBlock(
            workload_id=workload_id,
            first=block.first,
            lines=block.lines,
            stream=block.stream,
            text=block.text,
        )
        for block in blocks
    )
    last = blocks[-1]
    Workload.objects.filter(pk=workload_id).update(log_lines=last.first + last.lines - 1)


def blocks_after(workload_id: str, number: int) -> list[Block]:
    """The stored blocks that have lines after the line `number`."""
    found = LogBlock.objects.filter(workload_id=workload_id)
    begin = found.filter(first__lte=number + 1).order_by("-first").values_list("first").first()
    if begin is not None:
        found = found.filter(first__gte=begin[0])
    return [
        Block(first, stream, text, lines)
        for first, stream, text, lines in found.values_list("first", "stream", "text", "lines")
    ]


def lines_after(blocks: Sequence[Block], number: int) -> Iterator[Line]:
    """The lines of the blocks that follow the line `number`."""
    for block in blocks:
        if block.first + block.lines - 1 <= number:
            continue
        for offset, text in enumerate(block.text.split("\n")[:-1]):
            if block.first + offset > number:
                yield Line(block.first + offset, block.stream, text)
