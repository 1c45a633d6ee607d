"""Connections are for queries, not for the time between them."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, connections


def release_connection() -> None:
    """Before something that takes long: give the connection back, where others wait for one."""
    pooled = bool(connection.settings_dict["OPTIONS"].get("pool"))
    if pooled and not connection.in_atomic_block:
        connection.close()


@contextmanager
def closing_connections() -> Iterator[None]:
    """One round of a thread that rests in between: with a connection, and none after it."""
    try:
        yield
    finally:
        connections.close_all()
