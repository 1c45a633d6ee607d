"""A bound on the bytes of bodies that this process holds at once, over all of its requests."""

import os
import threading

from ..exceptions import BodyMemoryFull


class BodyMemory:
    """Counts the announced bytes of the bodies that are read, or were and are still needed.

    One body is always accepted, whatever its size: that is judged before.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Start with nothing, in a forked child too: its parent's requests are not its own."""
        self._lock = threading.Lock()
        self.held = 0

    def take(self, count: int, limit: int) -> None:
        """Reserve `count` bytes; raise `BodyMemoryFull` when that would be more than `limit`."""
        with self._lock:
            if self.held and self.held + count > limit:
                raise BodyMemoryFull(limit)
            self.held += count

    def give_back(self, count: int) -> None:
        with self._lock:
            self.held -= count


body_memory = BodyMemory()
"""That of this process."""

os.register_at_fork(after_in_child=body_memory._reset)
