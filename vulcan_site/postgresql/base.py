"""The database backend. Django imports `DatabaseWrapper` from this module."""

import os
import threading
import time
from typing import Any

from django.db.backends.postgresql import base
from django.db.utils import OperationalError
from psycopg_pool import PoolTimeout

MAX_WAIT_S = 20.0
MAX_WAITING_THREADS = 24
"""Fewer than gunicorn's threads, so that some can serve requests that need no database."""


class DatabaseWrapper(base.DatabaseWrapper):
    """Fails at once if the database is unreachable and MAX_WAITING_THREADS threads already wait.

    The pool's own `max_waiting` also counts waiters that have timed out, until a connection is
    available, and does not try to connect while there are too many.
    """

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection from the pool; wait up to MAX_WAIT_S while others are in use."""
        is_counted = _waiting.acquire(blocking=False)
        if not is_counted and not _in_use:
            raise OperationalError(f"{MAX_WAITING_THREADS} threads already wait for a connection")
        deadline = time.monotonic() + MAX_WAIT_S
        try:
            while True:
                try:
                    connection = super().get_new_connection(conn_params)
                except PoolTimeout:
                    if not _in_use or time.monotonic() > deadline:
                        raise
                else:
                    _in_use.add(id(connection))
                    return connection
        finally:
            if is_counted:
                _waiting.release()

    def _close(self) -> Any:
        _in_use.discard(id(self.connection))
        return super()._close()  # type: ignore[misc]  # the stubs have none


_waiting = threading.BoundedSemaphore(MAX_WAITING_THREADS)
_in_use: set[int] = set()  # ids of connections; soon empty when the database is unreachable


def _reset_after_fork() -> None:
    global _waiting
    _waiting = threading.BoundedSemaphore(MAX_WAITING_THREADS)
    _in_use.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
