"""Collect, bound, store and read the lines that workloads print.

Lines are numbered from 1 over both streams, in the order in which the host received them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..models import LogBlock, Workload
from ..utils import utf8
from ..workloads import STREAMS

MAX_LINES = 10_000
MAX_LINE_BYTES = 16 * 1024
FLUSH_AFTER_S = 0.5
HOST = "host"
"""The stream of Vulcan's own messages in a log."""
FULL = "… the log is full: further lines are dropped …"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of one stream with their newlines; `first` is the number of the first line."""

    first: int
    stream: str
    text: str
    lines: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline."""

    number: int
    stream: str
    text: str


class LogBuffer:
    """Turns written bytes into blocks of whole lines, at most `max_bytes` in total.

    A line that is too long, or does not end soon, is split between characters. Text that a carriage
    return overwrites is dropped, as a terminal would show it. `first` is the number of the first
    line. One thread writes and another reads.
    """

    def __init__(
        self, max_bytes: int, first: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._partial_since = dict.fromkeys(STREAMS, 0.0)
        self._flushed: set[str] = set()  # the streams whose last line was flushed before it ended
        self._left_bytes = max_bytes
        self._left_lines = MAX_LINES
        self._partial = dict.fromkeys(STREAMS, b"")
        self._pending: list[Block] = []
        self._sealed = 0  # how many of these are being stored: nothing is added to them
        self._first = self._next = first

    @property
    def empty(self) -> bool:
        """Whether nothing has been written."""
        return self._next == self._first and not any(self._partial.values())

    def write(self, stream: str, data: bytes) -> None:
        """Add bytes of one stream."""
        with self._lock:
            if self._full or stream not in self._partial:
                return
            partial = self._partial[stream]
            text = partial + data
            if stream in self._flushed:
                rest = text.lstrip(b"\r")
                if not rest:
                    self._partial[stream] = b"\r"
                    return
                self._flushed.discard(stream)
                text = rest[1:] if rest.startswith(b"\n") else text  # its newline was added before
            whole, end, rest = text.rpartition(b"\n")
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
        """Add the last, unfinished line of each stream: the program has ended."""
        with self._lock:
            for stream, rest in self._partial.items():
                if rest.strip(b"\r"):
                    self._append(stream, rest + b"\n")
                self._partial[stream] = b""

    def pending_blocks(self) -> Sequence[Block]:
        """Return the blocks that have not been acknowledged.

        A line that was started half a second ago is flushed unfinished: a prompt, a row of dots.
        What follows it becomes a line of its own.
        """
        with self._lock:
            flush_before = self._clock() - FLUSH_AFTER_S
            for stream, partial in self._partial.items():
                end = utf8.whole_end(partial)
                if partial[:end].strip(b"\r") and self._partial_since[stream] <= flush_before:
                    self._partial[stream] = partial[end:]
                    if end == len(partial):
                        self._flushed.add(stream)
                    self._append(stream, partial[:end] + b"\n")
            self._sealed = len(self._pending)
            return tuple(self._pending)

    def acknowledge(self, count: int) -> None:
        """Drop the first `count` blocks: they have been stored."""
        with self._lock:
            del self._pending[:count]
            self._sealed -= count

    @property
    def _full(self) -> bool:
        return self._left_bytes <= 0 or self._left_lines <= 0

    def _append(self, stream: str, data: bytes) -> None:
        if self._full:
            return
        accepted = data[: self._left_bytes]
        if len(accepted) < len(data):
            accepted = accepted[: utf8.whole_end(accepted)]
        if b"\r" in accepted:
            accepted = b"\n".join(
                _overwritten(line).rstrip(b"\r") for line in accepted.split(b"\n")
            )
        lines = accepted.count(b"\n")
        if lines > self._left_lines:
            accepted = b"\n".join(accepted.split(b"\n", self._left_lines)[:-1]) + b"\n"
        if not accepted.endswith(b"\n"):
            accepted += b"\n"
        self._left_bytes -= len(data)
        self._left_lines -= lines
        self._add(stream, accepted.decode(errors="replace"))
        if self._full:
            self._add(HOST, f"{FULL}\n")

    def _add(self, stream: str, text: str) -> None:
        lines = text.count("\n")
        last = self._pending[-1] if len(self._pending) > self._sealed else None
        if last is not None and last.stream == stream:
            self._pending[-1] = replace(last, text=last.text + text, lines=last.lines + lines)
        else:
            self._pending.append(Block(self._next, stream, text, lines))
        self._next += lines


def _overwritten(line: bytes) -> bytes:
    """Return the part of a line after its last carriage return, as a terminal would show it."""
    return line[line.rstrip(b"\r").rfind(b"\r") + 1 :]


def save_blocks(workload_id: str, blocks: Sequence[Block]) -> None:
    """Store consecutive blocks, inside the caller's transaction."""
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
    """Return the stored blocks that have lines after line `number`."""
    rows = LogBlock.objects.filter(workload_id=workload_id)
    begin = rows.filter(first__lte=number + 1).order_by("-first").values_list("first").first()
    if begin is not None:
        rows = rows.filter(first__gte=begin[0])
    return [
        Block(first, stream, text, lines)
        for first, stream, text, lines in rows.values_list("first", "stream", "text", "lines")
    ]


def block_with(workload_id: str, number: int) -> Block | None:
    """Return the stored block that has line `number`, or None."""
    rows = LogBlock.objects.filter(workload_id=workload_id, first__lte=number).order_by("-first")
    row = rows.values_list("first", "stream", "text", "lines").first()
    block = None if row is None else Block(*row)
    return block if block is not None and number < block.first + block.lines else None


def lines_after(blocks: Sequence[Block], number: int) -> Iterator[Line]:
    """Iterate over the lines of the blocks after line `number`."""
    for block in blocks:
        if block.first + block.lines - 1 <= number:
            continue
        for offset, text in enumerate(block.text.split("\n")[:-1]):
            if block.first + offset > number:
                yield Line(block.first + offset, block.stream, text)
