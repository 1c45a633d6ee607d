"""gunicorn configuration for `vulcan_site.wsgi`; gunicorn reads this file by default.

A request lasts as long as its workload, so there are many threads, most of them waiting.
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import environ
from gunicorn.glogging import Logger
from gunicorn.http.errors import InvalidHeader

from backends_app.observability import multiprocess_dir
from vulcan_site import logs, proxies


class _Environment(environ.Env):  # type: ignore[misc]
    """The environment that the settings will read; importing them would break a reload."""

    ENVIRON = dict(os.environ)


_Environment.read_env(Path(__file__).parent / ".env")
_environ = _Environment.ENVIRON
_format, _level = logs.defaults(sys.argv, debug=False)
logconfig_dict = logs.configuration(
    _environ.get("LOG_FORMAT", _format), _environ.get("LOG_LEVEL", _level)
)


class ErrorsOnly(Logger):  # type: ignore[misc]
    """Logs no access lines: the site writes them, with the user."""

    def access(self, *_: object) -> None:
        pass


M_MMAP_THRESHOLD = -3  # <malloc.h>
MMAP_THRESHOLD_BYTES = 256 * 1024

logger_class = ErrorsOnly
worker_class = "vulcan_site.gunicorn_worker.GunicornWorker"
workers = 4
threads = 32
worker_connections = 1000  # per worker; the one that has waited longest is closed to make room
keepalive = 10  # seconds that a new or kept-alive connection may take to send a request
sendfile = False  # it waits for a client without a limit
timeout = 60  # for the worker's heartbeat to its parent; waiting threads do not delay it
graceful_timeout = 30  # more than `grace_s` of the executor
bind = "127.0.0.1:8000"
forwarder_headers = ""  # the default trusts SCRIPT_NAME and PATH_INFO, which a client can send


_default = Path(tempfile.gettempdir(), f"vulcan-{os.geteuid()}")  # as in backends_app.conf
_folder = multiprocess_dir.create(Path(_environ.get("RUNTIME_DIR") or _default))
os.environ[multiprocess_dir.ENV_VAR] = str(_folder)


class _ExpectedBody:
    """A body reader that sends 100 Continue before the first read."""

    def __init__(self, reader: Any, connection: Any) -> None:
        self._reader, self._connection, self._sent = reader, connection, False

    def read(self, size: int) -> bytes:
        if not self._sent:
            self._sent = True
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return bytes(self._reader.read(size))


def when_ready(server: Any) -> None:
    """Log the warning of `manage.py check --deploy` about a missing proxy."""
    silenced = _Environment().list("SILENCED_SYSTEM_CHECKS", default=[])
    if proxies.count(_Environment()) == 0 and proxies.ID not in silenced:
        server.log.warning("%s: %s %s", proxies.ID, proxies.WARNING, proxies.HINT)


def pre_request(worker: object, req: Any) -> None:
    """Send 100 Continue only when the site reads the body; gunicorn would send it at once.

    The connection is closed afterwards: a client that got no 100 may or may not send its body.
    Refuse a request without a Host header (RFC 9112, 3.2).
    """
    if req.version >= (1, 1) and all(name != "HOST" for name, _ in req.headers):
        raise InvalidHeader("HOST")
    if req._expected_100_continue:
        req._expected_100_continue = False
        req.force_close()
        req.body.reader = _ExpectedBody(req.body.reader, req.unreader.sock)


def child_exit(server: object, worker: Any) -> None:
    """Remove the live gauges of a worker that exited; its counters stay."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)


def on_exit(server: object) -> None:
    multiprocess_dir.remove(_folder)


def post_fork(server: object, worker: object) -> None:
    """Make malloc return the memory of large bodies to the kernel when they are freed.

    By default glibc raises its mmap threshold, and keeps such blocks in an arena of each thread.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def post_worker_init(worker: Any) -> None:
    """Start the executor before the first request: run pending workloads, recover lost ones."""
    from backends_app.executors import start_executor
    from backends_app.utils.shares import stream_without_threads, thread_shares

    thread_shares.set_total(worker.cfg.threads)
    stream_without_threads(worker.worker_connections)
    start_executor(wait_s=0)
