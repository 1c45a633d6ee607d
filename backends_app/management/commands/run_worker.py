"""`manage.py run_worker`: make this machine one that runs workloads, for a server elsewhere."""

import logging
import os
import signal
import subprocess
import sys
import threading
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...exceptions import listing
from ...executors import executor
from ...registry import registry

logger = logging.getLogger(__name__)

LOOK_S = 0.5
AGAIN_S = 2.0  # before a worker that has ended is started again


class Command(BaseCommand):
    help = (
        "Run workloads that others submit: one worker process for each backend, which takes work "
        "while its backend is healthy here. Ends with SIGTERM, after what runs."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--backend", action="append", help="Only this one; may be given more than once."
        )
        parser.add_argument("--alone", action="store_true", help=SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        mine = executor()
        if not mine.remote:
            raise CommandError(
                "ISOLATION_EXECUTOR names an executor that runs workloads in the server itself, so "
                "there is nothing for a worker to do; set EXECUTOR=celery."
            )
        names = options["backend"] or list(registry)
        for name in names:
            if name not in registry:
                raise CommandError(f"No backend {name!r}; registered: {listing(registry)}.")
        if options["alone"]:
            parent = os.getppid()
            mine.work(names[0], lambda: os.getppid() == parent)
        else:
            _supervise(names)


def _supervise(names: Sequence[str]) -> None:
    """Keep one worker process for each backend alive until this one is told to end.

    If this one is killed, its workers notice and end, too.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    workers = {name: _start(name) for name in names}
    while not ended.wait(LOOK_S):
        for name, worker in workers.items():
            if worker.poll() is not None:
                logger.warning(
                    "the worker of %s has ended with %s; it is started again",
                    name,
                    worker.returncode,
                )
                ended.wait(AGAIN_S)
                workers[name] = _start(name)
    for worker in workers.values():
        worker.terminate()
    for worker in workers.values():
        worker.wait()


def _start(name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, sys.argv[0], "run_worker", "--alone", "--backend", name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - this very command
