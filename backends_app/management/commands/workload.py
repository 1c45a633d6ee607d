"""`manage.py workload`: look after recorded workloads from a terminal: list, status, logs, kill."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import lifecycle, logs, tails
from ...api.serializers import WorkloadSerializer, WorkloadSummarySerializer
from ...exceptions import VulcanError, short_repr
from ...logs import Line
from ...models import Workload
from ...workloads import Status
from ..output import add_format, print_json, print_rich, sanitize, spinner, workload_table

LISTED = 20
FILTERS = {"status": "status", "runtime": "runtime", "isolation": "isolation_used"}


class Command(BaseCommand):
    help = "List recorded workloads, show one, read or follow its log, or kill it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        listed = actions.add_parser("list", help="The newest workloads.")
        listed.add_argument("--status", choices=[str(one) for one in Status])
        listed.add_argument("--runtime")
        listed.add_argument("--isolation", help="The backend that they went to.")
        listed.add_argument("--user", help="Who submitted them.")
        listed.add_argument("--limit", type=int, default=LISTED)
        add_format(listed)
        status = actions.add_parser("status", help="One workload.")
        log = actions.add_parser("logs", help="What it printed.")
        log.add_argument("-f", "--follow", action="store_true", help="Go on until it has ended.")
        kill = actions.add_parser("kill", help="End it.")
        for one in (status, log, kill):
            one.add_argument("id", help="The workload's id, or the beginning of it.")
        add_format(status)

    def handle(self, *args: Any, **options: Any) -> None:
        match options["action"]:
            case "list":
                self._list(options)
            case "status":
                self._status(_one(options["id"]), options)
            case "logs":
                self._logs(_one(options["id"]), options["follow"])
            case "kill":
                self._kill(_one(options["id"]))

    def _list(self, options: dict[str, Any]) -> None:
        found = Workload.objects.summaries().select_related("owner")
        for name, lookup in FILTERS.items():
            if options[name] is not None:
                found = found.filter(**{lookup: options[name]})
        if options["user"] is not None:
            found = found.filter(owner__username=options["user"])
        rows = found[: max(0, options["limit"])]
        if options["format"] == "json":
            print_json(self, WorkloadSummarySerializer(rows, many=True).data)
        else:
            print_rich(self, options, workload_table(rows))

    def _status(self, workload: Workload, options: dict[str, Any]) -> None:
        if options["format"] == "json":
            print_json(self, WorkloadSerializer(workload).data)
        else:
            print_rich(self, options, workload_table([workload]))

    def _logs(self, workload: Workload, follow: bool) -> None:
        if not follow:
            self._print(list(logs.lines_after(logs.blocks_after(workload.pk, 0), 0)))
            return
        with tails.log_hub.subscribe(workload.pk) as follower:
            for lines in tails.follow(follower, 0):
                self._print(lines)

    def _print(self, lines: list[Line]) -> None:
        for line in lines:
            stream = self.stdout if line.stream == "stdout" else self.stderr
            stream.write(sanitize(line.text, stream), style_func=str)
            stream.flush()

    def _kill(self, workload: Workload) -> None:
        try:
            with spinner("Killing"):
                lifecycle.kill(workload)
        except VulcanError as error:
            raise CommandError(str(error)) from error
        if workload.ended:
            self.stdout.write(f"{workload.pk} has been killed.")
        else:
            self.stdout.write(f"{workload.pk} will be killed; its worker has not done it yet.")


def _one(beginning: str) -> Workload:
    found = list(Workload.objects.filter(pk__startswith=beginning)[:2])
    if not found or not beginning:
        raise CommandError(f"There is no workload {short_repr(beginning)}.")
    if len(found) > 1:
        raise CommandError(f"More than one workload begins with {short_repr(beginning)}.")
    return found[0]
