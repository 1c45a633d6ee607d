"""The threads that waiting requests hold are limited, in total and per user."""

from contextlib import ExitStack

import pytest

from backends_app import signals
from backends_app.exceptions import TooManyWaiting
from backends_app.utils.shares import Shares


@pytest.mark.parametrize(
    ("threads", "limit", "per_user"), [(1, 1, 1), (4, 3, 1), (32, 24, 8), (100, 75, 25)]
)
def test_some_threads_are_never_held(threads: int, limit: int, per_user: int):
    shares = Shares(threads)
    with ExitStack() as held:
        for number in range(limit):
            held.enter_context(shares.hold(number // per_user))
        with pytest.raises(TooManyWaiting), shares.hold("another"):
            pass
    with shares.hold("another"):
        pass


def test_one_user_holds_at_most_a_share():
    shares = Shares(8)
    with shares.hold("ada"), shares.hold("ada"):
        with pytest.raises(TooManyWaiting) as raised, shares.hold("ada"):
            pass
        assert raised.value.limit == 2
        with shares.hold("bob"):
            pass
    with shares.hold("ada"):
        pass


def test_an_error_releases_the_thread():
    shares = Shares(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), shares.hold("ada"):
            _ = 1 / 0


def test_held_and_refused_threads_are_signalled():
    heard = []

    def hear(held: int, limit: int, refused: bool, **_: object) -> None:
        heard.append((held, limit, refused))

    signals.threads_held.connect(hear)
    try:
        shares = Shares(4)
        with shares.hold("ada"), pytest.raises(TooManyWaiting), shares.hold("ada"):
            pass
    finally:
        signals.threads_held.disconnect(hear)
    assert heard == [(1, 3, False), (1, 3, True), (0, 3, False)]
