"""Limit the bytes of request bodies that this process holds at once."""

import threading
from collections import Counter

from ..exceptions import BodyMemoryFull
from ..utils.forks import reset_after_fork


class BodyMemory:
    """Counts the bytes (by Content-Length) of the bodies that are being read or are still in use.

    One user may hold half of them. A user without any may hold one body of any accepted size, if
    the other users leave room for it.
    """

    def __init__(self) -> None:
        self._reset_after_fork()
        reset_after_fork(self)

    def _reset_after_fork(self) -> None:
        """Start at zero, also in a forked child: its parent's requests are not its own."""
        self._lock = threading.Lock()
        self._held: Counter[object] = Counter()

    @property
    def reserved_bytes(self) -> int:
        """The number of reserved bytes."""
        return self._held.total()

    def reserve(self, user: object, count: int, limit: int) -> None:
        """Reserve `count` bytes for a user, or raise `BodyMemoryFull`."""
        with self._lock:
            own, total = self._held[user], self._held.total()
            if (own and own + count > limit // 2) or (total and total + count > limit):
                raise BodyMemoryFull(limit)
            self._held[user] += count

    def release(self, user: object, count: int) -> None:
        """Release `count` reserved bytes of a user."""
        with self._lock:
            self._held[user] -= count
            if not self._held[user]:
                del self._held[user]


body_memory = BodyMemory()
"""The body memory of this process."""
