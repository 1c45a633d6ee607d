"""`manage.py prune_workloads`: delete what ISOLATION_RETENTION says is kept long enough."""

from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.db.transaction import atomic

from ...conf import retention
from ...models import LogBlock, Source, Workload

AT_ONCE = 500  # so that nobody else waits long for the database


class Command(BaseCommand):
    requires_system_checks = []  # it runs no workload, so what backends lack does not matter
    help = (
        "Delete sources, outputs and logs of workloads that ended long ago, and the records of "
        "those that ended longer ago. What has not ended is never touched. For a daily timer."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        kept = retention()
        parser.add_argument("--source-days", type=float, default=kept.source_days)
        parser.add_argument("--outputs-days", type=float, default=kept.outputs_days)
        parser.add_argument("--records-days", type=float, default=kept.records_days)
        parser.add_argument("--dry-run", action="store_true", help="Only say how many.")

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
        forgotten, _ = sources.delete()
        deleted = 0
        while ids := list(records.values_list("pk", flat=True)[:AT_ONCE]):
            Workload.objects.filter(pk__in=ids).delete()
            deleted += len(ids)
        emptied = 0
        while ids := list(outputs.values_list("pk", flat=True)[:AT_ONCE]):
            with atomic():
                LogBlock.objects.filter(workload__in=ids).delete()
                emptied += Workload.objects.filter(pk__in=ids).update(
                    output=None, stdout="", stderr="", error="", outputs_pruned_at=now
                )
        self.stdout.write(
            f"{deleted} records, {emptied} outputs and {forgotten} sources were deleted."
        )
