"""What a test needs of its host: skipped without it, but under CI that is a failure."""

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str) -> None:
    if missing := [name for name in programs if shutil.which(name) is None]:
        without(f"{', '.join(missing)} missing: run `make host`")


def without(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
