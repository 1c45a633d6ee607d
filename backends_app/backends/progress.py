"""How a backend says how far it has come with something long, to whoever wants to know.

Nobody does by default; a command shows it on its terminal by `shown`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Advance: TypeAlias = Callable[[float, float], None]
"""Takes how much is done, and how much there is in all, in any unit."""

Display: TypeAlias = Callable[[str], AbstractContextManager[Advance]]
"""Takes what is being done; shows it until the end of the `with`."""


@contextmanager
def _silent(title: str) -> Iterator[Advance]:
    yield lambda done, total: None


_display: ContextVar[Display] = ContextVar("show", default=_silent)


def task(title: str) -> AbstractContextManager[Advance]:
    """`with task("Fetching …") as advance:`, and then `advance(3, 10)`."""
    return _display.get()(title)


@contextmanager
def use(display: Display) -> Iterator[None]:
    """All tasks of this thread are shown by `show` until the end of the `with`."""
    before = _display.set(display)
    try:
        yield
    finally:
        _display.reset(before)
