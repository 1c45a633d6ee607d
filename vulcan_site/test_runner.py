"""Test runner of `manage.py test`: runs pytest, and accepts Django's usual options."""

import os
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_django.runner import TestRunner


class PytestRunner(TestRunner):
    """A pytest runner with Django's `-k`, `--parallel`, `--tag`, `--exclude-tag`, dotted labels."""

    def __init__(
        self,
        *,
        test_name_patterns: list[str] | None = None,
        parallel: str | None = None,
        tags: list[str] | None = None,
        exclude_tags: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._arguments: list[str] = []
        if test_name_patterns:
            self._arguments += ["-k", " or ".join(f"({one})" for one in test_name_patterns)]
        if parallel is not None:
            # Neighbouring tests share fixtures, so each process starts with its own part of them
            # and takes over tests of another when it is done. Django turns "auto" into a number.
            self._arguments += ["-n", str(parallel), "--dist", "worksteal"]
        markers = [" or ".join(tags)] if tags else []
        markers += [f"not {tag}" for tag in exclude_tags or ()]
        if markers:
            self._arguments += ["-m", " and ".join(f"({marker})" for marker in markers)]

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "-k",
            action="append",
            dest="test_name_patterns",
            help="Run only tests that match pytest's -k expression. May be repeated.",
        )
        parser.add_argument(
            "--parallel",
            nargs="?",
            const="auto",
            metavar="N",
            help="Run tests in N processes (default: one per processor).",
        )
        parser.add_argument(
            "--tag", action="append", dest="tags", help="Run only tests with this marker."
        )
        parser.add_argument(
            "--exclude-tag",
            action="append",
            dest="exclude_tags",
            help="Skip tests with this marker.",
        )

    def run_tests(self, test_labels: Iterable[str], **options: Any) -> int:
        labels = [as_pytest_label(label) for label in test_labels]
        return super().run_tests([*self._arguments, *labels], **options)


def as_pytest_label(label: str) -> str:
    """Convert a label like `tests.api.test_routes.TestIt.test_x` to pytest's; keep paths."""
    if os.sep in label or "::" in label or Path(label).exists():
        return label
    parts = label.split(".")
    for length in range(len(parts), 0, -1):
        path = Path(*parts[:length])
        if path.is_dir() or path.with_suffix(".py").is_file():
            file = path if path.is_dir() else path.with_suffix(".py")
            return "::".join([str(file), *parts[length:]])
    return label
