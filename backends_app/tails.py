"""Following logs: all readers of one process share what is read of each workload."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError

from . import logs
from .database import closing_connections
from .logs import Block, Line
from .models import ENDED, Workload

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.25
KEEP_ALIVE_S = 10.0  # a reader that has gone away is noticed when something is sent to it
MAX_STREAM_S = 300.0  # then the reader comes back, if it is still there


@dataclass(eq=False)
class LogFollower:
    """The log of one workload as far as it is known here; `end` is there when it is whole."""

    workload_id: str
    blocks: list[Block] = field(default_factory=list)
    outcome: Mapping[str, str | None] | None = None
    readers: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def last_line(self) -> int:
        """The number of the last line."""
        return self.blocks[-1].first + self.blocks[-1].lines - 1 if self.blocks else 0

    def refresh(self) -> None:
        """Read what is new; the end first, since what comes before it is stored with it."""
        found = Workload.objects.filter(pk=self.workload_id)
        row = found.values("status", "exit_reason").first()
        new = logs.blocks_after(self.workload_id, self.last_line)
        with self.changed:
            self.blocks += [block for block in new if block.first > self.last_line]
            if row is None:
                self.outcome = {"status": None, "exit_reason": None}  # deleted meanwhile
            elif row["status"] in ENDED:
                self.outcome = {"status": row["status"], "exit_reason": row["exit_reason"]}
            if new or self.outcome:
                self.changed.notify_all()


class LogHub:
    """The logs that somebody follows in this process, and the one thread that reads them."""

    def __init__(self) -> None:
        self._reset_after_fork()

    def _reset_after_fork(self) -> None:
        """Begin anew: for a forked child, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._followers: dict[str, LogFollower] = {}
        self._some = threading.Event()
        self._started = False

    @contextmanager
    def subscribe(self, workload_id: str) -> Iterator[LogFollower]:
        """Follow a log, together with those in this process that follow it already."""
        with self._lock:
            follower = self._followers.setdefault(workload_id, LogFollower(workload_id))
            follower.readers += 1
            first = follower.readers == 1
            start, self._started = not self._started, True
        try:
            if first:
                follower.refresh()
            if start:
                threading.Thread(target=self._run, name="vulcan-tails", daemon=True).start()
            self._some.set()
            yield follower
        finally:
            with self._lock:
                follower.readers -= 1
                if not follower.readers:
                    del self._followers[workload_id]
                if not self._followers:
                    self._some.clear()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._some.wait()
            pause.wait(POLL_INTERVAL_S)
            with self._lock:
                log_hub = [
                    follower for follower in self._followers.values() if follower.outcome is None
                ]
            try:
                with closing_connections():
                    for follower in log_hub:
                        follower.refresh()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("logs cannot be followed: %s", error)
            except Exception:
                logger.exception("logs cannot be followed; it goes on")


log_hub = LogHub()
"""The logs that are followed in this process."""

os.register_at_fork(after_in_child=log_hub._reset_after_fork)


def follow(follower: LogFollower, number: int) -> Iterator[list[Line]]:
    """The lines after the line `number` as they come, until the end; sometimes none at all."""
    known = 0
    while True:
        with follower.changed:
            follower.changed.wait_for(
                lambda: len(follower.blocks) > known or follower.outcome is not None,  # noqa: B023
                KEEP_ALIVE_S,
            )
            new, outcome = follower.blocks[known:], follower.outcome
        known += len(new)
        yield list(logs.lines_after(new, number))
        if outcome is not None:
            return


def sse_events(follower: LogFollower, number: int) -> Iterator[str]:
    """Server-Sent Events of the lines after the line `number`.

    A `log` event for each line, whose id is its number; `done` when there will be no more.
    """
    yield "retry: 1000\n\n"
    began = time.monotonic()
    for lines in follow(follower, number):
        text = "".join(
            f"id: {line.number}\n" + _event("log", {"stream": line.stream, "line": line.text})
            for line in lines
        )
        yield text or ": it goes on\n\n"
        if time.monotonic() >= began + MAX_STREAM_S:
            return
    yield _event("done", follower.outcome)


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
