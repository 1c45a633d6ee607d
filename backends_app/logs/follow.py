"""Follow logs: all readers of one process share what is read of each workload."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
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


@dataclass(eq=False)
class LogFollower:
    """The log of one workload as read so far; `outcome` is set when the log is complete."""

    workload_id: str
    blocks: list[Block] = field(default_factory=list)
    outcome: Mapping[str, str | None] | None = None
    readers: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def last_line(self) -> int:
        """The number of the last line, 0 when there is none."""
        return self.blocks[-1].first + self.blocks[-1].lines - 1 if self.blocks else 0

    def refresh(self) -> None:
        """Read new blocks; the outcome first, since all blocks are stored with or before it."""
        workload = Workload.objects.filter(pk=self.workload_id)
        row = workload.values("status", "exit_reason").first()
        new = store.blocks_after(self.workload_id, self.last_line)
        with self.changed:
            self.blocks += [block for block in new if block.first > self.last_line]
            if row is None:
                self.outcome = {"status": None, "exit_reason": None}  # deleted in the meantime
            elif row["status"] in ENDED:
                self.outcome = {"status": row["status"], "exit_reason": row["exit_reason"]}
            if new or self.outcome:
                self.changed.notify_all()


class LogHub:
    """The logs that are followed in this process, and one thread that reads them."""

    def __init__(self) -> None:
        self._reset_after_fork()
        reset_after_fork(self)

    def _reset_after_fork(self) -> None:
        """Reset to the initial state: a forked child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._followers: dict[str, LogFollower] = {}
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
                follower.refresh()
            if start:
                threading.Thread(target=self._run, name="vulcan-log-hub", daemon=True).start()
            self._has_followers.set()
            yield follower
        finally:
            with self._lock:
                follower.readers -= 1
                if not follower.readers:
                    del self._followers[workload_id]
                if not self._followers:
                    self._has_followers.clear()

    def _run(self) -> None:
        while True:
            self._has_followers.wait()
            time.sleep(POLL_INTERVAL_S)
            background.run_round(self._refresh, "following logs")

    def _refresh(self) -> None:
        with self._lock:
            unfinished = [one for one in self._followers.values() if one.outcome is None]
        for follower in unfinished:
            follower.refresh()


log_hub = LogHub()
"""The log hub of this process."""


def follow(follower: LogFollower, number: int) -> Iterator[list[Line]]:
    """Yield new lines after line `number` until the end, or an empty list when there are none."""
    known = 0
    while True:
        with follower.changed:
            follower.changed.wait_for(
                lambda: len(follower.blocks) > known or follower.outcome is not None,  # noqa: B023
                KEEP_ALIVE_S,
            )
            new, outcome = follower.blocks[known:], follower.outcome
        known += len(new)
        yield list(store.lines_after(new, number))
        if outcome is not None:
            return


def sse_events(follower: LogFollower, number: int) -> Iterator[str]:
    """Yield Server-Sent Events for the lines after line `number`.

    Each line is a `log` event whose id is the line number; `done` follows the last line.
    """
    yield "retry: 1000\n\n"
    started = time.monotonic()
    for lines in follow(follower, number):
        text = "".join(
            f"id: {line.number}\n" + _event("log", {"stream": line.stream, "line": line.text})
            for line in lines
        )
        yield text or ": keep-alive\n\n"
        if time.monotonic() >= started + MAX_STREAM_S:
            return
    yield _event("done", follower.outcome)


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
