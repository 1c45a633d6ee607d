"""Warm pool of sandboxes: each waits in a shell and serves one workload.

The image's own `/bin/sh` waits in it, under the same limits as the workload. It reads one line, the
command, which replaces it; the rest of its stdin is the workload's.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from ...exceptions import BackendUnavailable
from ...utils.forks import reset_after_fork
from .container import Container, ContainerPlan
from .engine import EngineError

logger = logging.getLogger(__name__)

SHELL = "/bin/sh"
WAIT_FOR_COMMAND = 'n="\n"; IFS= read -r line && eval "$line"'
LIFETIME_S = 3600.0
LONGEST_START_S = 30.0
RETRY_S = 30.0
MAX_PLANS = 8


def waiting_plan(plan: ContainerPlan) -> ContainerPlan:
    """Return the plan of a sandbox that receives its command later."""
    return replace(plan, entrypoint=(SHELL,), command=("-c", WAIT_FOR_COMMAND))


class Pool:
    """Warm containers of the most recently requested plans, filled by one thread for each plan.

    Created empty before any fork; a forked child starts with an empty pool.
    """

    def __init__(
        self,
        start: Callable[[ContainerPlan, float], Container],
        remove: Callable[[Container], None],
    ) -> None:
        """`start` takes a plan and a lifetime in seconds; `remove` must not raise."""
        self._start = start
        self._remove = remove
        self._lock = threading.Lock()
        self._warm: dict[ContainerPlan, deque[Container]] = {}
        self._filling: dict[ContainerPlan, threading.Thread] = {}
        self._failed: dict[ContainerPlan, float] = {}
        self._closed = False
        reset_after_fork(self)

    def acquire(self, plan: ContainerPlan, size: int, needed_s: float) -> Container | None:
        """Return a warm container with `needed_s` left to live, or None; refill in a thread."""
        found = None
        dropped: list[Container] = []
        with self._lock:
            if self._closed:
                return None
            warm = self._warm.setdefault(plan, deque())
            self._warm[plan] = self._warm.pop(plan)  # ordered by the last request
            while warm and found is None:
                container = warm.popleft()
                young = time.monotonic() - container.created_at + needed_s < LIFETIME_S
                if young and container.is_idle:
                    found = container
                else:
                    dropped.append(container)
                    if young:  # perhaps the image has no shell
                        self._failed[plan] = time.monotonic() + RETRY_S
            while len(self._warm) > MAX_PLANS:
                oldest = next(iter(self._warm))
                dropped += self._warm.pop(oldest)
                self._failed.pop(oldest, None)
            if plan not in self._filling and self._failed.get(plan, 0) < time.monotonic():
                thread = threading.Thread(
                    target=self._fill, args=(plan, size), name="vulcan-gvisor-pool", daemon=True
                )
                self._filling[plan] = thread
                thread.start()
        for container in dropped:
            self._remove(container)
        return found

    def container_ids(self) -> set[str]:
        """Return the ids of the warm containers."""
        with self._lock:
            return {container.id for warm in self._warm.values() for container in warm}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            warm = [container for warm in self._warm.values() for container in warm]
            self._warm.clear()
            filling = list(self._filling.values())
        for thread in filling:  # they may be adding one that is not in the list yet
            thread.join(LONGEST_START_S)
        for container in warm:
            self._remove(container)

    def _fill(self, plan: ContainerPlan, size: int) -> None:
        try:
            while True:
                with self._lock:
                    warm = self._warm.get(plan)
                    if self._closed or warm is None or len(warm) >= size:
                        return
                container = self._start(plan, LIFETIME_S)
                with self._lock:
                    warm = self._warm.get(plan)
                    is_needed = not self._closed and warm is not None
                    if warm is not None and is_needed:
                        warm.append(container)
                if not is_needed:
                    self._remove(container)
        except (BackendUnavailable, EngineError) as error:
            logger.warning("no sandbox could be prepared: %s", error)
            with self._lock:
                self._failed[plan] = time.monotonic() + RETRY_S
        finally:
            with self._lock:
                self._filling.pop(plan, None)

    def _reset_after_fork(self) -> None:
        """Empty the pool in a forked child; containers and threads belong to the parent."""
        warm = [container for warm in self._warm.values() for container in warm]
        self._lock = threading.Lock()
        self._warm, self._filling, self._failed = {}, {}, {}
        for container in warm:
            container.reset_after_fork()
