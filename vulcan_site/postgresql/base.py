"""The database backend; Django looks for `DatabaseWrapper` here."""

import os
import threading
import time
from typing import Any

from django.db.backends.postgresql import base
from django.db.utils import OperationalError
from psycopg_pool import PoolTimeout

MAX_WAIT_S = 20.0
MAX_WAITING = 24
"""Fewer than the threads of gunicorn.conf.py: the others answer what needs no database."""


class DatabaseWrapper(base.DatabaseWrapper):
    """Refuses at once to wait for a database that is away where many threads already do.

    The pool's own `max_waiting` counts those that have given up as well, until a connection is
    there; and does not try for one as long as there are too many.
    """

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection of the pool, and wait longer for one while others have them."""
        is_counted = _waiting.acquire(blocking=False)
        if not is_counted and not _in_use:
            raise OperationalError(f"{MAX_WAITING} threads wait for a connection already")
        at_the_latest = time.monotonic() + MAX_WAIT_S
        try:
            while True:
                try:
                    connection = super().get_new_connection(conn_params)
                except PoolTimeout:
                    if not _in_use or time.monotonic() > at_the_latest:
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


_waiting = threading.BoundedSemaphore(MAX_WAITING)
_in_use: set[int] = set()  # of the connections; without a database there are soon none


def _reset_after_fork() -> None:
    global _waiting
    _waiting = threading.BoundedSemaphore(MAX_WAITING)
    _in_use.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
