"""Slots as tests look at them."""

from pathlib import Path

from backends_app.exceptions import BackendAtCapacity
from backends_app.slots import acquire_slot


def is_waited_for(name: str, taken: int, folder: Path) -> bool:
    """Tell whether somebody waits for a slot: one more than are taken is refused then."""
    try:
        with acquire_slot(name, taken + 1, folder):
            return False
    except BackendAtCapacity:
        return True
