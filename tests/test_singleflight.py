"""A hanging single-flight call costs one thread, and its callers only their timeout."""

import threading
from collections.abc import Iterator

import pytest

from backends_app.utils.singleflight import CallTimeout, SingleFlight

SHORT_S, LONG_S = 0.01, 60.0


class Hanging:
    """A function that returns when `free` is set, and counts its calls."""

    def __init__(self) -> None:
        self.free, self.begun, self.put = threading.Event(), threading.Event(), 0

    def __call__(self) -> int:
        self.put += 1
        self.begun.set()
        assert self.free.wait(LONG_S)
        return self.put


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.free.set()


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "vulcan-single-flight"]


def test_sequential_calls_run_the_function_each_time():
    answers = iter(range(3))
    flight = SingleFlight(lambda: next(answers), LONG_S)
    assert [flight.start().result() for _ in range(3)] == [0, 1, 2]


def test_an_exception_of_the_function_is_raised():
    def question() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        SingleFlight(question, LONG_S).start().result()


def test_a_hanging_call_times_out_for_all_callers_with_one_thread(hanging: Hanging):
    flight = SingleFlight(hanging, SHORT_S)
    for _ in range(100):
        with pytest.raises(CallTimeout):
            flight.start().result()
    assert (hanging.put, len(threads())) == (1, 1)


def test_concurrent_callers_share_the_result(hanging: Hanging):
    flight, answers = SingleFlight(hanging, LONG_S), []
    asked = [flight.start() for _ in range(10)]
    waiting = [
        threading.Thread(target=lambda one=one: answers.append(one.result())) for one in asked
    ]
    for thread in waiting:
        thread.start()
    hanging.free.set()
    for thread in waiting:
        thread.join()
    assert answers == [1] * 10


def test_the_function_runs_again_after_a_hanging_call_ends(hanging: Hanging):
    flight = SingleFlight(hanging, SHORT_S)
    late = flight.start()
    with pytest.raises(CallTimeout):
        late.result()
    hanging.free.set()
    [thread] = threads()
    thread.join()
    assert late.result() == 1
    assert SingleFlight(lambda: flight.start().future.result(LONG_S), LONG_S).start().result() == 2
