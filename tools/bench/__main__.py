"""Run every comparison and print a table; called by `make bench`."""

import os

import django
from rich.console import Console
from rich.table import Table

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")
django.setup()

from tools.bench import (  # noqa: E402 - needs django.setup()
    gvisor,
    history,
    hostile,
    http,
    isolate,
    metrics,
    microvm,
    registry,
)


def main() -> None:
    table = Table(
        "subject : baseline", "p50", "p95", "bar", "met", "subject", "baseline", title="Ratios"
    )
    for part in (registry, http, metrics, history, hostile, isolate, gvisor, microvm):
        for ratio in part.ratios():
            table.add_row(*ratio.row())
    console = Console(width=120)
    console.print(table)
    console.print(
        "Ratios are computed for each round of one run; absolute medians are for orientation."
    )
    console.print(isolate.memory())


if __name__ == "__main__":
    main()
