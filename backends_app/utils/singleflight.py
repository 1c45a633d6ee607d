"""Single-flight calls with a timeout: concurrent callers share one running call."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """The call did not return in time; it may still be running."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A running call; `deadline` is a time of `time.monotonic`."""

    future: "Future[T]"
    deadline: float

    def result(self) -> T:
        """Wait for the result and return it, or raise the call's exception or `CallTimeout`."""
        wait([self.future], max(0.0, self.deadline - time.monotonic()))
        if not self.future.done():
            raise CallTimeout
        return self.future.result()


class SingleFlight(Generic[T]):
    """Calls `function` in a thread of its own, at most one at a time.

    Concurrent callers share the running call and its deadline, `timeout_s` after its start: while a
    call hangs past its deadline, every caller gets `CallTimeout` at once and no thread is added.
    """

    def __init__(self, function: Callable[[], T], timeout_s: float) -> None:
        self._function = function
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._current: Call[T] | None = None

    def start(self) -> Call[T]:
        """Return the running call; start one unless it is running."""
        with self._lock:
            if self._current is None or self._current.future.done():
                deadline = time.monotonic() + self._timeout_s
                call: Call[T] = Call(Future(), deadline)
                threading.Thread(
                    target=self._run, args=[call.future], name="vulcan-single-flight", daemon=True
                ).start()
                self._current = call
            return self._current

    def _run(self, future: "Future[T]") -> None:
        try:
            future.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - raised in the callers
            future.set_exception(error)
