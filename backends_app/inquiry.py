"""Questions that might never be answered: who asks waits for a while, threads do not pile up."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """There was no answer in time; perhaps it still comes."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A question that is being answered; `at_the_latest` is by the clock of `time.monotonic`."""

    future: "Future[T]"
    deadline: float

    def result(self) -> T:
        """The answer, or what was raised instead; raises `CallTimeout` when it takes too long."""
        wait([self.future], max(0.0, self.deadline - time.monotonic()))
        if not self.future.done():
            raise CallTimeout
        return self.future.result()


class SingleFlight(Generic[T]):
    """Asks `question` in a thread of its own, one at the most.

    Who asks meanwhile shares the answer, and no longer than `patience_s` after it was asked: while
    a question hangs, everybody hears at once that there is no answer.
    """

    def __init__(self, function: Callable[[], T], timeout_s: float) -> None:
        self._function = function
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._current: Call[T] | None = None

    def start(self) -> Call[T]:
        with self._lock:
            if self._current is None or self._current.future.done():
                deadline = time.monotonic() + self._timeout_s
                call: Call[T] = Call(Future(), deadline)
                threading.Thread(
                    target=self._run, args=[call.future], name="vulcan-inquiry", daemon=True
                ).start()
                self._current = call
            return self._current

    def _run(self, future: "Future[T]") -> None:
        try:
            future.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - who asked gets it
            future.set_exception(error)
