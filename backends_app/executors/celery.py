"""Run submitted workloads in Celery workers, on this machine and others, by way of Redis.

Each backend has a queue. A message only signals that a workload waits; the id in it is for people
who inspect a queue. Messages are not trusted: a worker runs the next workload by the rows.
"""

import functools
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence, Set
from typing import Any

import celery.worker.consumer
from celery import Celery, bootsteps
from celery.platforms import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down
from kombu.exceptions import ChannelError, OperationalError

from ..backends import options
from ..execution import nodes
from ..health import monitor
from ..models import is_workload_id
from ..registry import BackendInfo, Registry
from .base import Executor

logger = logging.getLogger(__name__)

TASK = "vulcan.run_next"
FOLLOW_HEALTH_S = 1.0
BROKER_TIMEOUT_S = 2.0  # how long a caller waits for Redis; after that, maintenance retries
UNREACHABLE = (OperationalError, OSError)


class CeleryExecutor(Executor):
    """Sends work by way of Redis to the workers that `manage.py run_worker` starts.

    OPTIONS, beside those of every executor: `broker`, the URL of Redis
    (default: redis://127.0.0.1:6379/0).
    """

    remote = True
    requeue_after_s = 5.0

    def __init__(
        self, registry: Registry, *, broker: str = "redis://127.0.0.1:6379/0", **more: Any
    ) -> None:
        self._broker = options.text("broker", broker, "the URL of Redis")
        self._app: Celery | None = None
        self._served: str | None = None
        super().__init__(registry, **more)

    @property
    def app(self) -> Celery:
        """The Celery application of this process, created on first use."""
        if self._app is None:
            app = Celery("vulcan", broker=self._broker, set_as_current=False)
            app.conf.update(
                task_serializer="json",
                accept_content=["json"],
                task_ignore_result=True,
                task_publish_retry=False,
                task_create_missing_queues=True,
                worker_prefetch_multiplier=1,
                worker_consumer=f"{__name__}:Consumer",
                worker_enable_remote_control=False,  # no message can stop or change a worker
                worker_send_task_events=False,
                worker_hijack_root_logger=False,
                broker_connection_retry_on_startup=True,
                broker_connection_max_retries=None,
                broker_transport_options={
                    "socket_timeout": BROKER_TIMEOUT_S,
                    "socket_connect_timeout": BROKER_TIMEOUT_S,
                    "retry_on_timeout": False,
                    "max_retries": 0,
                },
            )
            app.task(name=TASK, ignore_result=True)(self._run_next_task)
            self._app = app
        return self._app

    def _reset_after_fork(self) -> None:
        super()._reset_after_fork()
        self._app = None  # it holds the connections of its pool

    def notify(self, workload_id: str, name: str) -> None:
        try:
            self.app.send_task(TASK, args=[workload_id], queue=queue(name), retry=False)
        except UNREACHABLE as error:
            # The workload is recorded, so it is not lost: maintenance notifies again.
            logger.warning("sending to Redis failed: %s", type(error).__name__)

    def queued_ids(self, name: str) -> Set[str] | None:
        """Return None while messages wait in the queue: they stand for all pending workloads."""
        try:
            with self.app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_S)
                waiting = connection.default_channel.queue_declare(
                    queue(name), passive=True
                ).message_count
        except ChannelError:
            waiting = 0
        except UNREACHABLE:
            return None
        return None if waiting else frozenset()

    def readiness_error(self) -> str:
        try:
            with self.app.connection_for_write() as connection:
                connection.ensure_connection(
                    max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT_S
                )
        except UNREACHABLE:
            return "Redis is unreachable"
        return super().readiness_error()

    # The process that accepts submissions

    def wait_for_health(self, wait_s: float) -> None:
        if self._served is not None:
            monitor.ensure_started(wait_s)
        elif self.is_started:
            self._first_round.wait(wait_s)
        else:
            self.maintenance.detector.refresh()
            self.on_nodes_changed(self.maintenance.detector)

    def on_nodes_changed(self, detector: nodes.FailureDetector) -> None:
        """Set the health of each backend from the nodes, unless this process is a worker."""
        if self._served is None:
            for entry in self.registry.snapshot.entries.values():
                self.registry.set_health(entry.name, entry.backend, detector.health(entry.name))

    # The worker

    def local_backends(self) -> Sequence[BackendInfo]:
        return [info for info in self.registry.list() if info.name == self._served]

    def run_worker(self, name: str, should_run: Callable[[], bool]) -> None:
        """Run as a worker of backend `name` until a signal or until `should_run()` is false."""
        self._served = name
        for other in self.registry:
            if other != name:
                self.registry.unregister(other)
        self.ensure_started()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._exit)
        while not self._is_healthy(name):  # its heartbeats report that to others
            if not should_run():
                return
            time.sleep(FOLLOW_HEALTH_S)
        self.app.steps["consumer"].add(_FollowHealth)
        self.app.vulcan_tick = functools.partial(self._tick, name, should_run)
        setup_logging.connect(_keep_logging)
        # Celery waits for running workloads without a limit; draining adds one.
        worker_shutting_down.connect(self._drain_in_background)
        with warnings.catch_warnings():
            # Celery warns root about messages in pickle, which are not accepted here.
            warnings.simplefilter("ignore", SecurityWarning)
            process = self.app.Worker(
                pool="threads",
                concurrency=self.registry.get(name).capabilities.max_concurrency,
                hostname=f"{name}@{nodes.node_name()}.{os.getpid()}",
                queues=[queue(name)],
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
                loglevel="INFO",
                quiet=True,
            )
        process.start()

    def _tick(self, name: str, should_run: Callable[[], bool], consumer: Any) -> None:
        """Consume the queue only while the backend is healthy here; stop when not to run."""
        if not should_run():
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.draining:
            consuming = consumer.task_consumer.consuming_from(queue(name))
            if consuming and not self._is_healthy(name):
                consumer.cancel_task_queue(queue(name))
            elif not consuming and self._is_healthy(name):
                consumer.add_task_queue(queue(name))

    def _drain_in_background(self, **_: object) -> None:
        threading.Thread(target=self.drain, name="vulcan-drain", daemon=True).start()

    def _is_healthy(self, name: str) -> bool:
        return self.registry.get(name).health.healthy is True

    def _exit(self, *_: object) -> None:
        """Handle a signal before Celery's worker has started."""
        raise SystemExit(0)

    def _run_next_task(self, workload_id: object) -> None:
        if (
            isinstance(workload_id, str)
            and is_workload_id(workload_id)
            and self._served is not None
        ):
            self.run_next(self._served)


class Consumer(celery.worker.consumer.Consumer):  # type: ignore[misc]
    """Drops malformed messages; Celery's own consumer would exit on one."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_drop(message: Any) -> None:
            try:
                handle(message)
            except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
                logger.warning("dropped a malformed message: %s", type(error).__name__)
                message.reject_log_error(logger, self.connection_errors)

        return handle_or_drop


class _FollowHealth(bootsteps.StartStopStep):  # type: ignore[misc]
    """Calls `_tick` each second in a worker's event loop, while it is connected."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        self._timer = parent.timer.call_repeatedly(
            FOLLOW_HEALTH_S, parent.app.vulcan_tick, (parent,)
        )

    def stop(self, parent: Any) -> None:
        self._timer.cancel()


def _keep_logging(**_: object) -> None:
    """Keep Celery from configuring logging, which it does only when nothing is connected.

    The project's LOGGING applies.
    """


def queue(name: str) -> str:
    """Return the name of a backend's queue."""
    return f"vulcan.{name}"
