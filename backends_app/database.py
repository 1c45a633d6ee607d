"""Connections are for queries, not for the time between them."""

from django.db import connection


def let_go() -> None:
    """Before something that takes long: give the connection back, where others wait for one."""
    pooled = bool(connection.settings_dict["OPTIONS"].get("pool"))
    if pooled and not connection.in_atomic_block:
        connection.close()
