"""Celery on Redis: workers on this machine and others run what was submitted.

One queue for each backend. A message says that something waits, and holds the id of a workload for
who reads a queue. There is nothing in it to believe: a worker runs what is next by the rows.
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

from .. import nodes
from ..backends import options
from ..health import monitor
from ..models import is_workload_id
from ..registry import BackendInfo, Registry
from .base import Executor

logger = logging.getLogger(__name__)

TASK = "vulcan.carry_out"
FOLLOW_HEALTH_S = 1.0
BROKER_S = 2.0  # how long a caller waits for Redis before the keeper takes it over
UNREACHABLE = (OperationalError, OSError)


class CeleryExecutor(Executor):
    """Leaves the work to the workers that `manage.py run_worker` starts, by way of Redis.

    OPTIONS, beside those of every executor: `broker`, the URL of Redis
    (default: redis://127.0.0.1:6379/0).
    """

    remote = True
    requeue_after_s = 5.0

    def __init__(
        self, registry: Registry, *, broker: str = "redis://127.0.0.1:6379/0", **given: Any
    ) -> None:
        self._broker = options.text("broker", broker, "the URL of Redis")
        self._app: Celery | None = None
        self._served: str | None = None
        super().__init__(registry, **given)

    @property
    def app(self) -> Celery:
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
                worker_enable_remote_control=False,  # nobody ends or changes a worker by a message
                worker_send_task_events=False,
                worker_hijack_root_logger=False,
                broker_connection_retry_on_startup=True,
                broker_connection_max_retries=None,
                broker_transport_options={
                    "socket_timeout": BROKER_S,
                    "socket_connect_timeout": BROKER_S,
                    "retry_on_timeout": False,
                    "max_retries": 0,
                },
            )
            app.task(name=TASK, ignore_result=True)(self._carry_out)
            self._app = app
        return self._app

    def _reset_after_fork(self) -> None:
        super()._reset_after_fork()
        self._app = None  # with the connections of its pool

    def notify(self, workload_id: str, name: str) -> None:
        try:
            self.app.send_task(TASK, args=[workload_id], queue=queue(name), retry=False)
        except UNREACHABLE as error:
            # It is recorded, so it is not lost: the keeper of some process sends it again.
            logger.warning("Redis does not take messages: %s", type(error).__name__)

    def queued_ids(self, name: str) -> Set[str] | None:
        """While messages wait in the queue, they are taken for those of all that wait."""
        try:
            with self.app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, timeout=BROKER_S)
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
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_S)
        except UNREACHABLE:
            return "Redis does not answer"
        return super().readiness_error()

    # The process that takes orders

    def wait_for_health(self, wait_s: float) -> None:
        if self._served is not None:
            monitor.ensure_started(wait_s)
        elif self.is_started:
            self._first_round.wait(wait_s)
        else:
            self._detector.refresh()
            self.on_nodes_changed(self._detector)

    def on_nodes_changed(self, watch: nodes.FailureDetector) -> None:
        """Here a backend is as healthy as the nodes say."""
        if self._served is None:
            for entry in self.registry.snapshot.entries.values():
                self.registry.set_health(entry.name, entry.backend, watch.health(entry.name))

    # The worker

    def local_backends(self) -> Sequence[BackendInfo]:
        return [info for info in self.registry.list() if info.name == self._served]

    def run_worker(self, name: str, wanted: Callable[[], bool]) -> None:
        """Be a worker of the backend `name` until the process is told to end, or is not wanted."""
        self._served = name
        for other in self.registry:
            if other != name:
                self.registry.unregister(other)
        self.ensure_started()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ended_before_it_began)
        while not self._healthy(name):  # it says so to others meanwhile
            if not wanted():
                return
            time.sleep(FOLLOW_HEALTH_S)
        self.app.steps["consumer"].add(_FollowHealth)
        self.app.vulcan_round = functools.partial(self._round, name, wanted)
        setup_logging.connect(_leave_logging_alone)
        # Celery waits for what runs; this bounds for how long.
        worker_shutting_down.connect(self._drain_meanwhile)
        with warnings.catch_warnings():
            # Celery warns root of messages in pickle, which is not taken here.
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

    def _round(self, name: str, wanted: Callable[[], bool], consumer: Any) -> None:
        """Take work while the backend is healthy here, and only then."""
        if not wanted():
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.draining:
            consuming = consumer.task_consumer.consuming_from(queue(name))
            if consuming and not self._healthy(name):
                consumer.cancel_task_queue(queue(name))
            elif not consuming and self._healthy(name):
                consumer.add_task_queue(queue(name))

    def _drain_meanwhile(self, **_: object) -> None:
        threading.Thread(target=self.drain, name="vulcan-drain", daemon=True).start()

    def _healthy(self, name: str) -> bool:
        return self.registry.get(name).health.healthy is True

    def _ended_before_it_began(self, *_: object) -> None:
        raise SystemExit(0)

    def _carry_out(self, workload_id: object) -> None:
        if (
            isinstance(workload_id, str)
            and is_workload_id(workload_id)
            and self._served is not None
        ):
            self.run_next(self._served)


class Consumer(celery.worker.consumer.Consumer):  # type: ignore[misc]
    """Drops a message that is not made as Celery's are; Celery's own consumer ends with it."""

    def create_task_handler(self, *given: Any, **more: Any) -> Callable[[Any], None]:
        take = super().create_task_handler(*given, **more)

        def take_or_drop(message: Any) -> None:
            try:
                take(message)
            except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
                logger.warning("a message was dropped: %s", type(error).__name__)
                message.reject_log_error(logger, self.connection_errors)

        return take_or_drop


class _FollowHealth(bootsteps.StartStopStep):  # type: ignore[misc]
    """In the loop of a worker, as long as it has a connection: a look at the health each second."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        self._timer = parent.timer.call_repeatedly(
            FOLLOW_HEALTH_S, parent.app.vulcan_round, (parent,)
        )

    def stop(self, parent: Any) -> None:
        self._timer.cancel()


def _leave_logging_alone(**_: object) -> None:
    """Where somebody listens, Celery does not set up logging: the project's LOGGING has done it."""


def queue(name: str) -> str:
    return f"vulcan.{name}"
