"""A bound on the bytes of bodies that this process holds at once, over all of its requests."""

import os
import threading
from collections import Counter

from ..exceptions import BodyMemoryFull


class BodyMemory:
    """Counts the announced bytes of the bodies that are read, or were and are still needed.

    Half of them may be one user's. A user who has none gets one body, whatever its size, where the
    others leave room for it: that is judged before.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Start with nothing, in a forked child too: its parent's requests are not its own."""
        self._lock = threading.Lock()
        self._held: Counter[object] = Counter()

    @property
    def held(self) -> int:
        return self._held.total()

    def reserve(self, user: object, count: int, limit: int) -> None:
        """Reserve `count` bytes for a user; raise `BodyMemoryFull` when they are too many."""
        with self._lock:
            own, total = self._held[user], self._held.total()
            if (own and own + count > limit // 2) or (total and total + count > limit):
                raise BodyMemoryFull(limit)
            self._held[user] += count

    def release(self, user: object, count: int) -> None:
        with self._lock:
            self._held[user] -= count
            if not self._held[user]:
                del self._held[user]


body_memory = BodyMemory()
"""That of this process."""

os.register_at_fork(after_in_child=body_memory._reset)
