"""The database backend; Django looks for `DatabaseWrapper` here."""

import os
import threading
from typing import Any

from django.db.backends.postgresql import base
from django.db.utils import OperationalError

MAX_WAITING = 24
"""Fewer than the threads of gunicorn.conf.py: the others answer what needs no database."""


class DatabaseWrapper(base.DatabaseWrapper):
    """Refuses at once to wait for a connection where many threads of the process already do.

    The pool's own `max_waiting` counts those that have given up as well, until a connection is
    there; and does not try for one as long as there are too many.
    """

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if not _waiting.acquire(blocking=False):
            raise OperationalError(f"{MAX_WAITING} threads wait for a connection already")
        try:
            return super().get_new_connection(conn_params)
        finally:
            _waiting.release()


_waiting = threading.BoundedSemaphore(MAX_WAITING)


def _reset_after_fork() -> None:
    global _waiting
    _waiting = threading.BoundedSemaphore(MAX_WAITING)


os.register_at_fork(after_in_child=_reset_after_fork)
