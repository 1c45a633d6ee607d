"""`manage.py run_worker`: run the workloads that servers submit to the broker."""

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

from ...conf import metrics_access, runtime_dir
from ...exceptions import comma_join
from ...executors import get_executor
from ...observability import exporter, metrics, multiprocess_dir
from ...registry import registry

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5
RESTART_DELAY_S = 2.0  # before a worker that exited is restarted


class Command(BaseCommand):
    help = (
        "Run submitted workloads with one worker process per backend, which accepts work while "
        "its backend is healthy on this host. Stops on SIGTERM after running workloads finish."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--backend",
            action="append",
            metavar="NAME",
            help="Serve only this backend. May be repeated.",
        )
        parser.add_argument(
            "--metrics",
            type=_address,
            metavar="[HOST:]PORT",
            help="Serve /metrics at this address (default host: 127.0.0.1). Default: off.",
        )
        parser.add_argument("--alone", action="store_true", help=SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        executor = get_executor()
        if not executor.remote:
            raise CommandError(
                "The configured ISOLATION_EXECUTOR runs workloads in the server itself and needs "
                "no workers; set EXECUTOR=celery to use workers."
            )
        names = options["backend"] or list(registry)
        for name in names:
            if name not in registry:
                raise CommandError(
                    f"Backend {name!r} is not registered. Registered: {comma_join(registry)}."
                )
        if options["alone"]:
            parent = os.getppid()
            executor.run_worker(names[0], lambda: os.getppid() == parent)
        elif options["metrics"] is None:
            _supervise(names)
        else:
            self._supervise_with_metrics(names, options["metrics"])

    def _supervise_with_metrics(self, names: Sequence[str], address: tuple[str, int]) -> None:
        """Supervise workers that share a metrics folder, and serve their sum over HTTP."""
        if metrics_access().access == "off":
            raise CommandError("METRICS_ACCESS is off, so --metrics cannot serve any.")
        folder = multiprocess_dir.create(runtime_dir())
        os.environ[multiprocess_dir.ENV_VAR] = str(folder)  # inherited by the workers
        host, port = address
        try:
            port = exporter.serve(host, port, lambda: metrics.worker_exposition(names, folder))
        except OSError as error:
            multiprocess_dir.remove(folder)
            raise CommandError(
                f"Cannot serve metrics at {host}:{port}: {error.strerror}."
            ) from error
        self.stdout.write(f"Serving metrics at http://{host}:{port}/metrics")
        try:
            _supervise(names, lambda worker: metrics.forget_process(worker, folder))
        finally:
            multiprocess_dir.remove(folder)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ArgumentTypeError(f"invalid port {port!r}")
    return host or "127.0.0.1", int(port)


def _supervise(names: Sequence[str], on_exit: Callable[[int], None] = lambda pid: None) -> None:
    """Run one worker process per backend, restarting those that exit, until SIGTERM or SIGINT.

    Workers exit by themselves if this process is killed. `on_exit` gets the pid of each worker that
    exited.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    workers = {name: _start(name) for name in names}
    while not stopping.wait(POLL_INTERVAL_S):
        for name, worker in workers.items():
            if worker.poll() is not None:
                logger.warning(
                    "the worker of %s exited with status %s and is restarted",
                    name,
                    worker.returncode,
                )
                on_exit(worker.pid)
                stopping.wait(RESTART_DELAY_S)
                workers[name] = _start(name)
    for worker in workers.values():
        worker.terminate()
    for worker in workers.values():
        worker.wait()


def _start(name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, sys.argv[0], "run_worker", "--alone", "--backend", name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - this very command
