"""How the commands show things: tables for people, JSON for programs, nothing hostile to either."""

import json
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, OutputWrapper
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from ..backends.base import Health
from ..backends.progress import Advance
from ..models import Workload
from ..registry import BackendInfo
from ..routing import Candidate

PIPED_WIDTH = 200  # columns where there is no terminal to ask
COLOURS = {"healthy": "green", "unhealthy": "red", "undetected": "yellow", "unknown": "dim"}
STATUS_COLOURS = {
    "pending": "dim",
    "running": "yellow",
    "completed": "green",
    "failed": "red",
    "killed": "magenta",
}

# C0 without tab and newline, DEL, C1: what moves cursors, retitles windows, answers queries; and
# what turns the direction of a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def add_format(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=["table", "json"],
        default="table",
        help="A table for people (default) or JSON for programs.",
    )


def print_rich(command: BaseCommand, options: Mapping[str, Any], *parts: RenderableType) -> None:
    """Print to the command's stdout; in colour only where a terminal shows it."""
    console = _console(command.stdout, options)
    for part in parts:
        console.print(part)


def print_json(command: BaseCommand, value: object) -> None:
    command.stdout.write(json.dumps(value, indent=2, ensure_ascii=command.stdout.isatty()))


def sanitize(text: str, stream: Any) -> str:
    """What a stranger's program wrote, fit for a terminal; unchanged for a pipe or a file."""
    if not stream.isatty():
        return text
    return _CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def backend_table(backends: Iterable[BackendInfo]) -> RenderableType:
    table = Table("Backend", "Health", "Takes", Column("What it says", overflow="fold"))
    for info in backends:
        state = Health(info.detected, info.healthy, info.health_description).state
        can = info.capabilities
        takes = [
            ", ".join(can.supported_runtimes),
            "as " + ", ".join(can.supported_source_formats),
            f"{can.max_concurrency} at once",
        ]
        attributes = [f"{key}: {value}" for key, value in info.attributes.items()]
        table.add_row(
            info.name,
            Text(state, style=COLOURS[state]),
            Text("\n".join(takes)),
            Text("\n".join([info.health_description, *attributes])),
        )
    if not table.row_count:
        return Text("No backend is registered; name one in ISOLATION_BACKENDS.")
    return table


def candidate_table(candidates: Sequence[Candidate]) -> RenderableType:
    table = Table("Candidate", "Eligible", Column("Why", overflow="fold"))
    for candidate in candidates:
        yes = Text("yes", style="green") if candidate.eligible else Text("no", style="red")
        table.add_row(Text(candidate.name), yes, Text(candidate.reason))
    return table


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A bar on stderr while something long is done; one line where stderr is no terminal.

    rich's bars do not get along with Django's stream, which adds line ends: hence the console.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title} …", markup=False, highlight=False, soft_wrap=True)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def spinner(title: str) -> Iterator[None]:
    """How long it has taken so far, on stderr while something is waited for; for terminals only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        shown.add_task(title, total=None)
        yield


def workload_table(workloads: Iterable[Workload]) -> RenderableType:
    table = Table(
        *("Workload", "Status", "Runtime", "Backend", "Node", "Owner", "Created", "ms"),
        Column("Why", overflow="fold"),
    )
    for one in workloads:
        table.add_row(
            one.pk,
            Text(one.status, style=STATUS_COLOURS[one.status]),
            one.runtime,
            one.isolation_used,
            one.node,
            Text(one.owner.get_username() if one.owner else ""),
            f"{one.created_at:%Y-%m-%d %H:%M:%S}",
            "" if one.duration_ms is None else str(one.duration_ms),
            Text(_CONTROLS.sub("�", ": ".join(filter(None, [one.exit_reason, one.error[:200]])))),
        )
    return table if table.row_count else Text("There is no such workload.")


def _console(stream: OutputWrapper, options: Mapping[str, Any]) -> Console:
    terminal = stream.isatty() or bool(options.get("force_color"))
    return Console(
        file=cast(IO[str], stream),  # writes like a file, and adds line ends that print has
        force_terminal=terminal,
        no_color=bool(options.get("no_color")) or not terminal,
        width=None if stream.isatty() else PIPED_WIDTH,
        highlight=False,
        soft_wrap=False,
    )
