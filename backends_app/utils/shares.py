"""Limit what requests of this server process hold of it while they wait.

A thread that waits for a workload, streams a log or reads a large body cannot serve other requests.
Three quarters of the server's threads may be held in this way, one quarter by one user; the rest
stays free for short requests. A server that streams logs without a thread for each limits the
streams in the same way, as shares of its connections.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from django.dispatch import Signal

from .. import signals
from ..exceptions import TooManyWaiting

DEFAULT_THREADS = 32


class Shares:
    """Counts what is held of `total`, altogether and per user; `changed` reports it."""

    def __init__(self, total: int, changed: Signal = signals.threads_held) -> None:
        self._lock = threading.Lock()
        self._held: Counter[object] = Counter()
        self._changed = changed
        self.set_total(total)

    def set_total(self, total: int) -> None:
        """Derive the limits from how much the server has."""
        self.limit = max(1, total * 3 // 4)
        self.limit_per_user = max(1, total // 4)

    @contextmanager
    def hold(self, user: object) -> Iterator[None]:
        """Hold one for a user; raise `TooManyWaiting` when a share is used up."""
        with self._lock:
            own, total = self._held[user], self._held.total()
            allowed = own < self.limit_per_user and total < self.limit
            if allowed:
                self._held[user] += 1
                total += 1
        self._report(total, refused=not allowed)
        if not allowed:
            raise TooManyWaiting(self.limit_per_user if own >= self.limit_per_user else self.limit)
        try:
            yield
        finally:
            with self._lock:
                self._held[user] -= 1
                if not self._held[user]:
                    del self._held[user]
                total = self._held.total()
            self._report(total, refused=False)

    def _report(self, held: int, *, refused: bool) -> None:
        self._changed.send_robust(None, held=held, limit=self.limit, refused=refused)


thread_shares = Shares(DEFAULT_THREADS)
"""The threads of this process."""

stream_shares = Shares(0, signals.streams_open)
"""The connections of this process, of which log streams hold some."""

_streams_hold_threads = True


def stream_without_threads(connections: int) -> None:
    """Let log streams hold connections from now on, of which the server has this many."""
    global _streams_hold_threads
    _streams_hold_threads = False
    stream_shares.set_total(connections)


def hold_stream(user: object) -> AbstractContextManager[None]:
    """Hold what a log stream needs of this server; raise as `Shares.hold` does."""
    return (thread_shares if _streams_hold_threads else stream_shares).hold(user)
