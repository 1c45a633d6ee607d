"""`manage.py setup_backend NAME`: install what a backend needs on this host, and probe it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...backends import progress
from ...backends.setup import SetupError
from ...registry import registry
from ..output import progress_bar


class Command(BaseCommand):
    help = (
        "Install and configure what a backend needs on this host, step by step. Completed steps"
        " are skipped, so it can be run again; --dry-run only prints the missing steps. At the end"
        " the backend is probed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="The backend's name, as shown by list_backends.")
        parser.add_argument(
            "--runtime",
            nargs="+",
            default=[],
            help="Install only what these runtimes need, if the backend distinguishes them.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Print what would be done and change nothing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        if name not in registry:
            raise CommandError(
                f"Backend {name!r} is not registered. Registered: {', '.join(registry) or 'none'}."
            )
        backend, runtimes = registry.snapshot.entries[name].backend, options["runtime"]
        if unknown := set(runtimes) - set(backend.capabilities.supported_runtimes):
            raise CommandError(
                f"Backend {name!r} does not run {', '.join(sorted(unknown))}. It runs:"
                f" {', '.join(backend.capabilities.supported_runtimes)}."
            )
        try:
            with progress.use(progress_bar):
                for step in backend.setup(runtimes):
                    if step.is_done():
                        self.stdout.write(f"present  {step.what}")
                    elif options["dry_run"]:
                        self.stdout.write(f"missing  {step.what}\n         would: {step.action}")
                    else:
                        self.stdout.write(f"missing  {step.what}\n         now: {step.action}")
                        step.apply()
        except SetupError as error:
            raise CommandError(str(error)) from error
        if options["dry_run"]:
            return
        found = backend.probe()
        if found.state != "healthy":
            raise CommandError(f"{name} is {found.state}: {found.description}")
        self.stdout.write(self.style.SUCCESS(f"healthy  {name}: {found.description}"))
