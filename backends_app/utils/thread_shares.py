"""Limit the threads of this server process that requests hold while they wait.

A thread that waits for a workload, streams a log or reads a large body cannot serve other requests.
Three quarters of the server's threads may be held in this way, one quarter by one user; the rest
stays free for short requests.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .. import signals
from ..exceptions import TooManyWaiting

DEFAULT_THREADS = 32


class ThreadShares:
    """Counts the held threads, in total and per user."""

    def __init__(self, threads: int = DEFAULT_THREADS) -> None:
        self._lock = threading.Lock()
        self._held: Counter[object] = Counter()
        self.set_threads(threads)

    def set_threads(self, threads: int) -> None:
        """Derive the limits from the number of threads that the server has."""
        self.limit = max(1, threads * 3 // 4)
        self.limit_per_user = max(1, threads // 4)

    @contextmanager
    def hold(self, user: object) -> Iterator[None]:
        """Hold the caller's thread for a user; raise `TooManyWaiting` when a share is used up."""
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
        signals.threads_held.send_robust(None, held=held, limit=self.limit, refused=refused)


thread_shares = ThreadShares()
"""The thread shares of this process."""
