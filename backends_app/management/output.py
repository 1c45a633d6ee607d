"""Output of the commands: tables for people, JSON for programs, safe for terminals."""

import json
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
from ..utils.text import MAX_LINE_CHARS, ascii_json, escape

PIPED_WIDTH = 200  # columns without a terminal
COLOURS = {"healthy": "green", "unhealthy": "red", "undetected": "yellow", "unknown": "dim"}
STATUS_COLOURS = {
    "pending": "dim",
    "running": "yellow",
    "completed": "green",
    "failed": "red",
    "killed": "magenta",
}


def add_format(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=["table", "json"],
        default="table",
        help="Output format: a table for people (default) or JSON for programs.",
    )


def print_rich(command: BaseCommand, options: Mapping[str, Any], *parts: RenderableType) -> None:
    """Print to the command's stdout, in colour only on a terminal."""
    console = _console(command.stdout, options)
    for part in parts:
        console.print(part)


def print_json(command: BaseCommand, value: object) -> None:
    """Print JSON to the command's stdout, in ASCII on a terminal."""
    if command.stdout.isatty():
        command.stdout.write(ascii_json(value, indent=2))
    else:
        command.stdout.write(json.dumps(value, indent=2, ensure_ascii=False))


def sanitize(text: str, stream: Any) -> str:
    """Escape untrusted text for a terminal; leave pipes and files alone."""
    return escape(text) if stream.isatty() else text


def plain(text: str, style: str = "") -> Text:
    """Return untrusted text for a table: escaped, and without markup."""
    return Text(escape(text), style=style)


def backend_table(backends: Iterable[BackendInfo]) -> RenderableType:
    table = Table("Backend", "Health", "Accepts", Column("Details", overflow="fold"))
    for info in backends:
        state = Health(info.detected, info.healthy, info.health_description).state
        capabilities = info.capabilities
        accepts = [
            ", ".join(capabilities.supported_runtimes),
            "as " + ", ".join(capabilities.supported_source_formats),
            f"{capabilities.max_concurrency} at once",
        ]
        attributes = [f"{key}: {value}" for key, value in info.attributes.items()]
        table.add_row(
            info.name,
            Text(state, style=COLOURS[state]),
            plain("\n".join(accepts)),
            plain("\n".join([info.health_description, *attributes])),
        )
    if not table.row_count:
        return Text("No backend is registered. Add one to ISOLATION_BACKENDS.")
    return table


def candidate_table(candidates: Sequence[Candidate]) -> RenderableType:
    table = Table("Candidate", "Eligible", Column("Reason", overflow="fold"))
    for candidate in candidates:
        eligible = Text("yes", style="green") if candidate.eligible else Text("no", style="red")
        table.add_row(plain(candidate.name), eligible, plain(candidate.reason))
    return table


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """Show a progress bar on stderr, or one line if stderr is not a terminal.

    Uses a console of its own: Django's output wrapper adds line ends, which breaks rich's bars.
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
    """Show the elapsed time on stderr during a wait; only on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(title, total=None)
        yield


def workload_table(workloads: Iterable[Workload]) -> RenderableType:
    table = Table(
        *("Workload", "Status", "Runtime", "Backend", "Node", "Owner", "Created", "ms"),
        Column("Reason", overflow="fold"),
    )
    for one in workloads:
        table.add_row(
            one.pk,
            Text(one.status, style=STATUS_COLOURS[one.status]),
            plain(one.runtime),
            plain(one.isolation_used),
            plain(one.node),
            plain(one.owner.get_username() if one.owner else ""),
            f"{one.created_at:%Y-%m-%d %H:%M:%S}",
            "" if one.duration_ms is None else str(one.duration_ms),
            plain(": ".join(filter(None, [one.exit_reason, one.error[:MAX_LINE_CHARS]]))),
        )
    return table if table.row_count else Text("No workloads found.")


def _console(stream: OutputWrapper, options: Mapping[str, Any]) -> Console:
    terminal = stream.isatty() or bool(options.get("force_color"))
    return Console(
        file=cast(IO[str], stream),  # file-like enough for rich
        force_terminal=terminal,
        no_color=bool(options.get("no_color")) or not terminal,
        width=None if stream.isatty() else PIPED_WIDTH,
        highlight=False,
        soft_wrap=False,
    )
