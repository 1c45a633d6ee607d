"""Reset objects in forked children, which have no thread of their parent, only its locks."""

import logging
import os
import weakref
from typing import Protocol

logger = logging.getLogger(__name__)


class Resettable(Protocol):
    """An object whose locks, threads or connections belong to one process."""

    def _reset_after_fork(self) -> None: ...


_objects: "weakref.WeakValueDictionary[int, Resettable]" = weakref.WeakValueDictionary()


def reset_after_fork(one: Resettable) -> None:
    """Call the object's `_reset_after_fork` in each forked child, for as long as it exists."""
    _objects[id(one)] = one


def _reset_all() -> None:
    for one in list(_objects.values()):
        try:
            one._reset_after_fork()
        except Exception:  # the others still have to be reset
            logger.exception("%s could not be reset after a fork", type(one).__name__)


os.register_at_fork(after_in_child=_reset_all)
