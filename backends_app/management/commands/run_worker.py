"""`manage.py run_worker`: make this machine one that runs workloads, for a server elsewhere."""

import logging
import os
import signal
import subprocess
import sys
import threading
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import metrics, metrics_folder, metrics_server
from ...conf import metrics_access, runtime_dir
from ...exceptions import comma_join
from ...executors import get_executor
from ...registry import registry

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5
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
        parser.add_argument(
            "--metrics",
            type=_address,
            metavar="[HOST:]PORT",
            help="Answer /metrics there (default host: 127.0.0.1); without it, nowhere.",
        )
        parser.add_argument("--alone", action="store_true", help=SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        executor = get_executor()
        if not executor.remote:
            raise CommandError(
                "ISOLATION_EXECUTOR names an executor that runs workloads in the server itself, so "
                "there is nothing for a worker to do; set EXECUTOR=celery."
            )
        names = options["backend"] or list(registry)
        for name in names:
            if name not in registry:
                raise CommandError(f"No backend {name!r}; registered: {comma_join(registry)}.")
        if options["alone"]:
            parent = os.getppid()
            executor.run_worker(names[0], lambda: os.getppid() == parent)
        elif options["metrics"] is None:
            _supervise(names)
        else:
            self._supervise_with_metrics(names, options["metrics"])

    def _supervise_with_metrics(self, names: Sequence[str], address: tuple[str, int]) -> None:
        """The workers count together in a folder of their own, and this process says the sum."""
        if metrics_access().access == "off":
            raise CommandError("METRICS_ACCESS is off: there are no metrics to be answered.")
        folder = metrics_folder.create(runtime_dir())
        os.environ[metrics_folder.ENV_VAR] = str(folder)  # of the workers
        host, port = address
        try:
            port = metrics_server.serve(
                host, port, lambda: metrics.worker_exposition(names, folder)
            )
        except OSError as error:
            metrics_folder.remove(folder)
            raise CommandError(f"No metrics at {host}:{port}: {error.strerror}.") from error
        self.stdout.write(f"Metrics are at http://{host}:{port}/metrics")
        try:
            _supervise(names, lambda worker: metrics.forget_process(worker, folder))
        finally:
            metrics_folder.remove(folder)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ArgumentTypeError(f"{port!r} is no port")
    return host or "127.0.0.1", int(port)


def _supervise(names: Sequence[str], on_exit: Callable[[int], None] = lambda pid: None) -> None:
    """Keep one worker process for each backend alive until this one is told to end.

    If this one is killed, its workers notice and end, too. `gone` hears which of them have ended.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    workers = {name: _start(name) for name in names}
    while not ended.wait(POLL_INTERVAL_S):
        for name, worker in workers.items():
            if worker.poll() is not None:
                logger.warning(
                    "the worker of %s has ended with %s; it is started again",
                    name,
                    worker.returncode,
                )
                on_exit(worker.pid)
                ended.wait(AGAIN_S)
                workers[name] = _start(name)
    for worker in workers.values():
        worker.terminate()
    for worker in workers.values():
        worker.wait()


def _start(name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, sys.argv[0], "run_worker", "--alone", "--backend", name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - this very command
