"""`manage.py probe_backends`: run every probe and print the results."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...api.representation import backend_list
from ...exceptions import comma_join
from ...health import HealthMonitor
from ...registry import registry
from ..output import add_format, backend_table, print_rich


class Command(BaseCommand):
    help = (
        "Probe every backend by running a small workload on it. Exits with 1 if one is unhealthy; "
        "a backend that is not installed counts only if --require names it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_format(parser)
        parser.add_argument(
            "--require",
            action="append",
            default=[],
            metavar="NAME",
            help="Exit with 1 unless this backend is healthy. May be repeated.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        for name in options["require"]:
            if name not in registry:
                raise CommandError(
                    f"Backend {name!r} is not registered. Registered: {comma_join(registry)}."
                )
        HealthMonitor(registry).probe_all()
        snapshot = registry.snapshot
        if options["format"] == "json":
            self.stdout.write(backend_list(snapshot).body.decode())
        else:
            print_rich(self, options, backend_table(snapshot.list()))
        failing = [
            name
            for name, entry in snapshot.entries.items()
            if entry.health.state == "unhealthy"
            or (name in options["require"] and not entry.health.healthy)
        ]
        if failing:
            raise CommandError(f"Not healthy: {comma_join(failing)}.")
