"""`manage.py test` runs pytest, and the options that Django's users know mean what they know."""

import os
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_django.runner import TestRunner


class PytestRunner(TestRunner):
    """Adds `-k`, `--parallel`, `--tag`, `--exclude-tag` and dotted labels."""

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
            # Neighbours share fixtures, so each process begins with its own part of the tests; a
            # process that is through takes some of another's. Django makes a number of "auto".
            self._arguments += ["-n", str(parallel), "--dist", "worksteal"]
        wanted = [" or ".join(tags)] if tags else []
        wanted += [f"not {tag}" for tag in exclude_tags or ()]
        if wanted:
            self._arguments += ["-m", " and ".join(f"({one})" for one in wanted)]

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "-k",
            action="append",
            dest="test_name_patterns",
            help="Run only tests whose name matches, as pytest's -k. May be repeated.",
        )
        parser.add_argument(
            "--parallel",
            nargs="?",
            const="auto",
            metavar="N",
            help="Run in N processes; without N, in as many as there are processors.",
        )
        parser.add_argument(
            "--tag", action="append", dest="tags", help="Run only tests with this marker."
        )
        parser.add_argument(
            "--exclude-tag",
            action="append",
            dest="exclude_tags",
            help="Leave out tests with this marker.",
        )

    def run_tests(self, test_labels: Iterable[str], **options: Any) -> int:
        labels = [as_pytest_label(label) for label in test_labels]
        return super().run_tests([*self._arguments, *labels], **options)


def as_pytest_label(label: str) -> str:
    """`tests.api.test_routes.TestIt.test_x` as pytest names it; a path stays what it is."""
    if os.sep in label or "::" in label or Path(label).exists():
        return label
    parts = label.split(".")
    for length in range(len(parts), 0, -1):
        path = Path(*parts[:length])
        if path.is_dir() or path.with_suffix(".py").is_file():
            file = path if path.is_dir() else path.with_suffix(".py")
            return "::".join([str(file), *parts[length:]])
    return label
