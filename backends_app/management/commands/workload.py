"""`manage.py workload`: list, show, follow and kill recorded workloads."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...api.serializers.workloads import WorkloadSerializer, WorkloadSummarySerializer
from ...exceptions import VulcanError
from ...execution import lifecycle
from ...logs.follow import follow as follow_log
from ...logs.follow import log_hub
from ...logs.store import Line, blocks_after, lines_after
from ...models import Workload
from ...utils.text import short_repr
from ...workloads import Status
from ..output import add_format, print_json, print_rich, sanitize, spinner, workload_table

DEFAULT_LIMIT = 20


class Command(BaseCommand):
    help = "List recorded workloads; show, follow or kill one of them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        listed = actions.add_parser("list", help="List the newest workloads.")
        listed.add_argument(
            "--status", choices=[str(one) for one in Status], help="Only this status."
        )
        listed.add_argument("--runtime", help="Only workloads of this runtime.")
        listed.add_argument("--isolation", help="Only workloads of this backend.")
        listed.add_argument("--user", help="Only workloads of this user.")
        listed.add_argument(
            "--limit", type=int, default=DEFAULT_LIMIT, help=f"Default: {DEFAULT_LIMIT}."
        )
        add_format(listed)
        status = actions.add_parser("status", help="Show a workload.")
        log = actions.add_parser("logs", help="Print the log of a workload.")
        log.add_argument("-f", "--follow", action="store_true", help="Follow until it ends.")
        kill = actions.add_parser("kill", help="Kill a workload.")
        for one in (status, log, kill):
            one.add_argument("id", help="The workload's id or a unique prefix.")
        add_format(status)

    def handle(self, *args: Any, **options: Any) -> None:
        match options["action"]:
            case "list":
                self._list(options)
            case "status":
                self._status(_find(options["id"]), options)
            case "logs":
                self._logs(_find(options["id"]), options["follow"])
            case "kill":
                self._kill(_find(options["id"]))

    def _list(self, options: dict[str, Any]) -> None:
        found = Workload.objects.all().filter_by(options)
        rows = found.summaries().select_related("owner")[: max(0, options["limit"])]
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
            self._print(list(lines_after(blocks_after(workload.pk, 0), 0)))
            return
        with log_hub.subscribe(workload.pk) as follower:
            for lines in follow_log(follower):
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
            self.stdout.write(f"{workload.pk} killed.")
        else:
            self.stdout.write(f"{workload.pk}: kill requested; waiting for its worker.")


def _find(prefix: str) -> Workload:
    """Return the workload with this id prefix; raise CommandError unless it is unique."""
    found = list(Workload.objects.filter(pk__startswith=prefix)[:2])
    if not found or not prefix:
        raise CommandError(f"No workload has the id {short_repr(prefix)}.")
    if len(found) > 1:
        raise CommandError(f"More than one workload id begins with {short_repr(prefix)}.")
    return found[0]
