"""Rounds of background threads survive errors; objects are reset in forked children."""

import gc
import logging
import os
import threading

import pytest
from django.db import DatabaseError, InterfaceError, connection

from backends_app.exceptions import HostFault
from backends_app.utils import background, forks


class Counter:
    """An object with a state of one process; `fault` is raised by its reset."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.resets = 0
        self.fault = fault

    def _reset_after_fork(self) -> None:
        self.resets += 1
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize(
    ("error", "level", "traceback"),
    [
        (DatabaseError("gone"), "WARNING", False),
        (InterfaceError("gone"), "WARNING", False),
        (HostFault("gone"), "WARNING", False),
        (RuntimeError("a bug"), "ERROR", True),
    ],
)
def test_an_error_is_logged_and_the_next_round_runs(caplog, error, level, traceback):
    stop = threading.Event()
    rounds = []

    def function() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            stop.set()
            return
        raise error

    with caplog.at_level(logging.WARNING):
        background.repeat(function, "the task", stop)
    assert len(rounds) == 2
    [record] = caplog.records
    assert (record.levelname, record.exc_info is not None) == (level, traceback)
    assert "the task failed" in record.getMessage()


def test_a_stopped_task_runs_no_round():
    stop = threading.Event()
    stop.set()
    background.repeat(lambda: pytest.fail("it ran"), "the task", stop)


@pytest.mark.django_db(transaction=True)
def test_connections_are_closed_after_a_round():
    found = []

    def function() -> None:
        connection.ensure_connection()
        found.append(connection.connection)

    def run() -> None:
        background.run_round(function, "the task")
        found.append(connection.connection)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0] is not None
    assert found[1] is None


def test_objects_are_reset_in_a_forked_child_even_if_one_fails():
    broken, sound = Counter(RuntimeError("a bug")), Counter()
    forks.reset_after_fork(broken)
    forks.reset_after_fork(sound)
    child = os.fork()
    if child == 0:
        os._exit(0 if broken.resets == sound.resets == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert broken.resets == sound.resets == 0


def test_an_object_that_is_reset_after_forks_can_be_freed():
    one = Counter()
    key = id(one)
    forks.reset_after_fork(one)
    assert forks._objects[key] is one
    del one
    gc.collect()
    assert key not in forks._objects
