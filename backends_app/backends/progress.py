"""Progress reports of long operations in backends.

They are discarded by default; a command displays them on its terminal with `use`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Advance: TypeAlias = Callable[[float, float], None]
"""Takes the amount done and the total, in any unit."""

Display: TypeAlias = Callable[[str], AbstractContextManager[Advance]]
"""Takes the title of a task and displays it until the end of the `with` block."""


@contextmanager
def _silent(title: str) -> Iterator[Advance]:
    yield lambda done, total: None


_display: ContextVar[Display] = ContextVar("show", default=_silent)


def task(title: str) -> AbstractContextManager[Advance]:
    """Report a task: `with task("Fetching …") as advance:`, and then `advance(3, 10)`."""
    return _display.get()(title)


@contextmanager
def use(display: Display) -> Iterator[None]:
    """Display all tasks of this thread with `display` until the end of the `with` block."""
    before = _display.set(display)
    try:
        yield
    finally:
        _display.reset(before)
