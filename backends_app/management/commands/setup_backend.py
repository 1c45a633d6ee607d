"""`manage.py setup_backend NAME`: give a backend what it needs on this host, and prove it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...backends import progress
from ...backends.setup import SetupError
from ...registry import registry
from ..output import progress_bar


class Command(BaseCommand):
    help = (
        "Install and configure what a backend needs on this host, step by step. What is there"
        " already is left alone, so it may be run again; --dry-run only says what would be done."
        " At the end the backend has to prove that it works."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="The backend, as list_backends shows it.")
        parser.add_argument(
            "--runtime",
            nargs="+",
            default=[],
            help="Only what these runtimes need, where the backend tells them apart.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would be done, and change nothing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        if name not in registry:
            raise CommandError(
                f"Backend {name!r} is not registered. Registered: {', '.join(registry) or 'none'}."
            )
        backend, wanted = registry.snapshot.entries[name].backend, options["runtime"]
        if unknown := set(wanted) - set(backend.capabilities.supported_runtimes):
            raise CommandError(
                f"Backend {name!r} does not run {', '.join(sorted(unknown))}. It runs:"
                f" {', '.join(backend.capabilities.supported_runtimes)}."
            )
        try:
            with progress.shown(progress_bar):
                for step in backend.setup(wanted):
                    if step.done():
                        self.stdout.write(f"there    {step.needed}")
                    elif options["dry_run"]:
                        self.stdout.write(f"missing  {step.needed}\n         would: {step.how}")
                    else:
                        self.stdout.write(f"missing  {step.needed}\n         now: {step.how}")
                        step.take()
        except SetupError as error:
            raise CommandError(str(error)) from error
        if options["dry_run"]:
            return
        found = backend.probe()
        if found.state != "healthy":
            raise CommandError(f"{name} is {found.state}: {found.description}")
        self.stdout.write(self.style.SUCCESS(f"healthy  {name}: {found.description}"))
