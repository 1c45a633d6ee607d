"""A launcher of Python, with a check that it leaves nothing."""

import os
from collections.abc import Iterator

import pytest

from backends_app.sandbox.client import Launcher
from tests.confinement import programs


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    descriptors = len(os.listdir("/proc/self/fd"))
    started = programs.children(os.getpid())
    launcher = programs.launcher()
    yield launcher
    launcher.close()
    assert programs.children(os.getpid()) == started
    assert len(os.listdir("/proc/self/fd")) == descriptors
