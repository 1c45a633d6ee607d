"""`manage.py resolve_backend`: show which backend a workload would be routed to, and why."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.text import Text

from ...api.serializers.routes import CandidateSerializer, ResolutionSerializer
from ...health import HealthMonitor
from ...registry import registry
from ...routing import RUNTIMES, parse_isolation
from ...workloads import AUTO, SOURCE_FORMATS
from ..output import add_format, candidate_table, print_json, print_rich


class Command(BaseCommand):
    help = "Show which backend a workload would be routed to, and why. Exits with 1 if none is."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("runtime", nargs="?", help=f"One of {', '.join(RUNTIMES)}.")
        parser.add_argument(
            "--isolation",
            default=AUTO,
            help="auto (default), a backend, or several separated by commas.",
        )
        parser.add_argument(
            "--source-format",
            default="code",
            help=f"One of {', '.join(SOURCE_FORMATS)} (default: code).",
        )
        add_format(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        HealthMonitor(registry).probe_all()
        resolution = registry.explain(
            parse_isolation(options["isolation"]), options["runtime"], options["source_format"]
        )
        if options["format"] == "json":
            if resolution.error is None:
                print_json(self, ResolutionSerializer(resolution).data)
            else:
                candidates = CandidateSerializer(resolution.candidates, many=True).data
                print_json(
                    self,
                    {"backend": None, "error": str(resolution.error), "candidates": candidates},
                )
        else:
            name = Text(resolution.name or "no backend", style="bold")
            print_rich(self, options, name + Text(f"  ({resolution.rule})"))
            if resolution.candidates:
                print_rich(self, options, candidate_table(resolution.candidates))
        if resolution.error is not None:
            raise CommandError(str(resolution.error))
