"""Inspect slots in tests."""

from pathlib import Path

from backends_app.exceptions import BackendAtCapacity
from backends_app.execution.slots import acquire_slot


def has_waiter(name: str, taken: int, folder: Path) -> bool:
    """Return whether a process waits for a slot: acquiring one more is refused then."""
    try:
        with acquire_slot(name, taken + 1, folder):
            return False
    except BackendAtCapacity:
        return True
