"""`manage.py list_backends`: `GET /v1/backends` for a terminal."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from ...api.representation import backend_list
from ...health import HealthMonitor
from ...registry import registry
from ..output import add_format, backend_table, print_rich


class Command(BaseCommand):
    help = "List the registered backends with their capabilities and their health on this host."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_format(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        HealthMonitor(registry).probe_all()
        if options["format"] == "json":
            self.stdout.write(backend_list(registry.snapshot).body.decode())
        else:
            print_rich(self, options, backend_table(registry.list()))
