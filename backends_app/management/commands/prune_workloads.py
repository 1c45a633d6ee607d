"""`manage.py prune_workloads`: delete data that is older than ISOLATION_RETENTION."""

from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.db.transaction import atomic

from ...conf import retention
from ...models import LogBlock, Source, Workload

BATCH_SIZE = 500  # keeps transactions short for other users of the database


class Command(BaseCommand):
    requires_system_checks = []  # backends are not used
    help = (
        "Delete sources, outputs, logs and records of ended workloads whose retention period has "
        "passed. Unfinished workloads are never touched. Run it daily."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        defaults = retention()
        for option, kind, days in (
            ("--source-days", "sources", defaults.source_days),
            ("--outputs-days", "outputs and logs", defaults.outputs_days),
            ("--records-days", "records", defaults.records_days),
        ):
            parser.add_argument(
                option,
                type=float,
                default=days,
                metavar="DAYS",
                help=f"Keep {kind} for this many days (default: {days:g}).",
            )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only print how many would be deleted."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = datetime.now(UTC)
        ended = Workload.objects.order_by()
        records = ended.filter(finished_at__lt=now - timedelta(days=options["records_days"]))
        outputs = ended.filter(
            finished_at__lt=now - timedelta(days=options["outputs_days"]), outputs_pruned_at=None
        )
        sources = Source.objects.filter(
            workload__finished_at__lt=now - timedelta(days=options["source_days"])
        )
        if options["dry_run"]:
            self.stdout.write(
                f"{records.count()} records, {outputs.count()} outputs and {sources.count()} "
                "sources would be deleted."
            )
            return
        deleted_sources, _ = sources.delete()
        deleted_records = 0
        while ids := list(records.values_list("pk", flat=True)[:BATCH_SIZE]):
            Workload.objects.filter(pk__in=ids).delete()
            deleted_records += len(ids)
        deleted_outputs = 0
        while ids := list(outputs.values_list("pk", flat=True)[:BATCH_SIZE]):
            with atomic():
                LogBlock.objects.filter(workload__in=ids).delete()
                deleted_outputs += Workload.objects.filter(pk__in=ids).update(
                    output=None, stdout="", stderr="", error="", outputs_pruned_at=now
                )
        self.stdout.write(
            f"{deleted_records} records, {deleted_outputs} outputs and {deleted_sources} sources "
            "were deleted."
        )
