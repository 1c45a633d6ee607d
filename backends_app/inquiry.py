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
    at_the_latest: float

    def result(self) -> T:
        """The answer, or what was raised instead; raises `CallTimeout` when it takes too long."""
        wait([self.future], max(0.0, self.at_the_latest - time.monotonic()))
        if not self.future.done():
            raise CallTimeout
        return self.future.result()


class SingleFlight(Generic[T]):
    """Asks `question` in a thread of its own, one at the most.

    Who asks meanwhile shares the answer, and no longer than `patience_s` after it was asked: while
    a question hangs, everybody hears at once that there is no answer.
    """

    def __init__(self, question: Callable[[], T], timeout_s: float) -> None:
        self._question = question
        self._patience_s = timeout_s
        self._lock = threading.Lock()
        self._asked: Call[T] | None = None

    def start(self) -> Call[T]:
        with self._lock:
            if self._asked is None or self._asked.future.done():
                at_the_latest = time.monotonic() + self._patience_s
                asked: Call[T] = Call(Future(), at_the_latest)
                threading.Thread(
                    target=self._find_out, args=[asked.future], name="vulcan-inquiry", daemon=True
                ).start()
                self._asked = asked
            return self._asked

    def _find_out(self, future: "Future[T]") -> None:
        try:
            future.set_result(self._question())
        except BaseException as error:  # noqa: BLE001 - who asked gets it
            future.set_exception(error)
