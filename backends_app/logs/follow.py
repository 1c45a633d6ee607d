"""Follow logs: one thread of each process watches them, and readers read them in pieces."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..models import ENDED, Workload
from ..utils import background
from ..utils.forks import reset_after_fork
from . import store
from .store import Block, Line

POLL_INTERVAL_S = 0.25
KEEP_ALIVE_S = 10.0  # a disconnected reader is noticed only when something is sent
MAX_STREAM_S = 300.0  # then the reader has to reconnect, if it is still there
MAX_PIECE_CHARS = 64 * 1024  # of lines that are read at once
MAX_CACHED_BLOCKS = 16  # of up to 1 MB each, shared by readers of the same logs
RETRY = "retry: 1000\n\n"
KEEP_ALIVE = ": keep-alive\n\n"


@dataclass(eq=False)
class LogFollower:
    """A followed log: the number of its stored lines, and its outcome once it is complete."""

    workload_id: str
    lines: int = 0
    outcome: Mapping[str, str | None] | None = None
    readers: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def update(self, row: tuple[int, str, str] | None) -> None:
        """Apply lines, status and exit reason of the workload; None if it was deleted."""
        with self.changed:
            if row is None:
                self.outcome = {"status": None, "exit_reason": None}
            else:
                self.lines, status, exit_reason = row
                if status in ENDED:
                    self.outcome = {"status": status, "exit_reason": exit_reason}
            self.changed.notify_all()


class LogHub:
    """The logs that are followed in this process, and one thread that watches them."""

    def __init__(self) -> None:
        self._reset_after_fork()
        reset_after_fork(self)

    def _reset_after_fork(self) -> None:
        """Reset to the initial state: a forked child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._followers: dict[str, LogFollower] = {}
        self._blocks: OrderedDict[str, Block] = OrderedDict()  # the last read of a workload
        self._has_followers = threading.Event()
        self._started = False

    @contextmanager
    def subscribe(self, workload_id: str) -> Iterator[LogFollower]:
        """Follow a log inside the block; all readers in this process share the follower."""
        with self._lock:
            follower = self._followers.setdefault(workload_id, LogFollower(workload_id))
            follower.readers += 1
            first = follower.readers == 1
            start, self._started = not self._started, True
        try:
            if first:
                refresh([follower])
            if start:
                threading.Thread(target=self._run, name="vulcan-log-hub", daemon=True).start()
            self._has_followers.set()
            yield follower
        finally:
            with self._lock:
                follower.readers -= 1
                if not follower.readers:
                    del self._followers[workload_id]
                    self._blocks.pop(workload_id, None)
                if not self._followers:
                    self._has_followers.clear()

    def read_block(self, workload_id: str, number: int) -> Block | None:
        """Return the stored block with line `number`, or None if it was deleted."""
        block = self._blocks.get(workload_id)
        if block is None or not block.first <= number < block.first + block.lines:
            block = store.block_with(workload_id, number)
            if block is not None:
                with self._lock:
                    self._blocks[workload_id] = block
                    self._blocks.move_to_end(workload_id)
                    while len(self._blocks) > MAX_CACHED_BLOCKS:
                        self._blocks.popitem(last=False)
        return block

    def _run(self) -> None:
        while True:
            self._has_followers.wait()
            time.sleep(POLL_INTERVAL_S)
            background.run_round(self._refresh_live, "following logs")

    def _refresh_live(self) -> None:
        with self._lock:
            live = [one for one in self._followers.values() if one.outcome is None]
        refresh(live)


def refresh(followers: Iterable[LogFollower]) -> None:
    """Update the followers with one query. A row's lines are stored with or before it."""
    by_id = {follower.workload_id: follower for follower in followers}
    if not by_id:
        return
    rows = Workload.objects.filter(pk__in=by_id)
    columns = rows.values_list("pk", "log_lines", "status", "exit_reason")
    found = {pk: (lines, status, exit_reason) for pk, lines, status, exit_reason in columns}
    for workload_id, follower in by_id.items():
        follower.update(found.get(workload_id))


log_hub = LogHub()
"""The log hub of this process."""


class LogReader:
    """Reads a followed log after line `number`, in pieces, and without waiting for more."""

    def __init__(self, follower: LogFollower, number: int, hub: LogHub = log_hub) -> None:
        self.follower = follower
        self._number = number
        self._hub = hub

    def read(self) -> list[Line] | None:
        """Return the next lines; [] when there are none yet, None after the last one."""
        outcome = self.follower.outcome  # before `lines`, which are final when it is set
        if self._number >= self.follower.lines:
            return [] if outcome is None else None
        block = self._hub.read_block(self.follower.workload_id, self._number + 1)
        if block is None:  # deleted: the row will be, too, and then there is an outcome
            self._number = self.follower.lines
            return []
        piece: list[Line] = []
        chars = 0
        for line in store.lines_after([block], self._number):
            piece.append(line)
            chars += len(line.text)
            if chars >= MAX_PIECE_CHARS:
                break
        self._number = piece[-1].number
        return piece

    def wait(self, timeout_s: float) -> None:
        """Wait until there is more to read."""
        with self.follower.changed:
            self.follower.changed.wait_for(
                lambda: self._number < self.follower.lines or self.follower.outcome is not None,
                timeout_s,
            )


def follow(follower: LogFollower, number: int = 0) -> Iterator[list[Line]]:
    """Yield new lines after line `number` until the end; for a thread that can wait."""
    reader = LogReader(follower, number)
    while (lines := reader.read()) is not None:
        if lines:
            yield lines
        else:
            reader.wait(KEEP_ALIVE_S)


class LogEvents:
    """The Server-Sent Events of a followed log.

    Each line is a `log` event whose id is the line number; `done` follows the last line. Iterate
    over them in a thread that can wait, or `poll` them from an event loop.
    """

    def __init__(self, reader: LogReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._started_at: float | None = None
        self._sent_at = 0.0
        self._ended = False

    def poll(self) -> bytes | None:
        """Return the events that can be sent now, b"" if there are none, or None after the end."""
        now = self._clock()
        if self._started_at is None:
            self._started_at = self._sent_at = now
            return RETRY.encode()
        if self._ended or now >= self._started_at + MAX_STREAM_S:
            return None
        lines = self._reader.read()
        if lines is None:
            self._ended = True
            return _event("done", self._reader.follower.outcome).encode()
        text = "".join(
            f"id: {line.number}\n" + _event("log", {"stream": line.stream, "line": line.text})
            for line in lines
        )
        if not text and now >= self._sent_at + KEEP_ALIVE_S:
            text = KEEP_ALIVE
        if text:
            self._sent_at = now
        return text.encode()

    def __iter__(self) -> Iterator[bytes]:
        while (data := self.poll()) is not None:
            if data:
                yield data
            else:
                self._reader.wait(max(0.0, self._sent_at + KEEP_ALIVE_S - self._clock()))


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
