"""Return database connections while no query needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, connections


def release_connection() -> None:
    """Return a pooled connection to its pool before a long wait."""
    pooled = bool(connection.settings_dict["OPTIONS"].get("pool"))
    if pooled and not connection.in_atomic_block:
        connection.close()


@contextmanager
def closing_connections() -> Iterator[None]:
    """Close all connections at the end of the block: for one round of a background thread."""
    try:
        yield
    finally:
        connections.close_all()
