"""List the suites by name, and sample their tests."""

import random
from collections.abc import Callable, Iterator

from backends_app.backends.base import Backend
from tests.conformance import npm, parser, standard
from tests.conformance.cases import Case

Cases = Callable[[dict[str, Backend], list[str]], Iterator[Case]]
# By name: the function that yields cases, and the names of all tests.
SUITES: dict[str, tuple[Cases, Callable[[], list[str]]]] = {
    "npm": (npm.cases, npm.names),
    "test262": (parser.cases, parser.names),
    "CPython": (standard.cpython, lambda: list(standard.MODULES)),
    "Go": (standard.go, lambda: list(standard.GO_PACKAGES)),
}


def sample(suite: str, count: int, backends: dict[str, Backend]) -> Iterator[Case]:
    """Run at most `count` tests of a suite, the same ones each time."""
    cases, names = SUITES[suite]
    everything = names()
    chosen = random.Random(1).sample(everything, min(count, len(everything)))
    yield from cases(backends, sorted(chosen))
