"""A launcher of Python, with a check that it leaves nothing."""

import os
from collections.abc import Iterator

import pytest

from backends_app.sandbox.client import Launcher
from tests.sandbox import programs
from tests.support.processes import children


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    descriptors = len(os.listdir("/proc/self/fd"))
    started = children(os.getpid())
    launcher = programs.launcher()
    yield launcher
    launcher.close()
    assert children(os.getpid()) == started
    assert len(os.listdir("/proc/self/fd")) == descriptors
