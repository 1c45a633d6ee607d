"""How gunicorn serves `vulcan_site.wsgi`; it reads this file by itself.

A request lasts as long as its workload, so there are many threads, most of which wait.
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

from backends_app import metrics_folder
from vulcan_site import logs, proxies


class _Environment(environ.Env):  # type: ignore[misc]
    """What the settings will see. They are not imported here: a reload would keep the old ones."""

    ENVIRON = dict(os.environ)


_Environment.read_env(Path(__file__).parent / ".env")
_given = _Environment.ENVIRON
_format, _level = logs.defaults(sys.argv, debug=False)
logconfig_dict = logs.configuration(
    _given.get("LOG_FORMAT", _format), _given.get("LOG_LEVEL", _level)
)


class ErrorsOnly(Logger):  # type: ignore[misc]
    """The site writes the access line: it knows the user."""

    def access(self, *_: object) -> None:
        pass


M_MMAP_THRESHOLD = -3  # <malloc.h>
MMAP_THRESHOLD_BYTES = 256 * 1024

logger_class = ErrorsOnly
worker_class = "vulcan_site.gunicorn_worker.GunicornWorker"
workers = 4
threads = 32
worker_connections = 1000  # of each worker; the one that has waited the longest makes room
keepalive = 10  # seconds in which a connection, new or kept alive, has to bring a request
sendfile = False  # it would wait for a client without a bound
timeout = 60  # of a worker that does not answer its parent; threads that wait do not count
graceful_timeout = 30  # more than `grace_s` of the executor
bind = "127.0.0.1:8000"
forwarder_headers = ""  # by default SCRIPT_NAME and PATH_INFO, which a client could send


_default = Path(tempfile.gettempdir(), f"vulcan-{os.geteuid()}")  # as in backends_app.conf
_folder = metrics_folder.create(Path(_given.get("RUNTIME_DIR") or _default))
os.environ[metrics_folder.ENV_VAR] = str(_folder)


class _ExpectedBody:
    """Reads a body, and asks the client for it when it is read for the first time."""

    def __init__(self, reader: Any, connection: Any) -> None:
        self._reader, self._connection, self._asked = reader, connection, False

    def read(self, size: int) -> bytes:
        if not self._asked:
            self._asked = True
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return bytes(self._reader.read(size))


def when_ready(server: Any) -> None:
    """Give the warning of `manage.py check --deploy` where somebody who starts a server sees it."""
    silenced = _Environment().list("SILENCED_SYSTEM_CHECKS", default=[])
    if proxies.count(_Environment()) == 0 and proxies.ID not in silenced:
        server.log.warning("%s: %s %s", proxies.ID, proxies.WARNING, proxies.HINT)


def pre_request(worker: object, req: Any) -> None:
    """Let the site judge a request before its body is asked for; gunicorn would ask at once.

    A client that was not asked keeps its body, so nothing else can follow on the connection.
    A request without a Host is refused (RFC 9112, 3.2).
    """
    if req.version >= (1, 1) and all(name != "HOST" for name, _ in req.headers):
        raise InvalidHeader("HOST")
    if req._expected_100_continue:
        req._expected_100_continue = False
        req.force_close()
        req.body.reader = _ExpectedBody(req.body.reader, req.unreader.sock)


def child_exit(server: object, worker: Any) -> None:
    """What a worker was the only one to know ends with it; what it has counted stays."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)


def on_exit(server: object) -> None:
    metrics_folder.remove(_folder)


def post_fork(server: object, worker: object) -> None:
    """Give the memory of large bodies back to the kernel as soon as they are freed.

    glibc would keep blocks as large as it has freed before, in an arena of each thread.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def post_worker_init(worker: Any) -> None:
    """Take up what waits, and settle what a server before this one left, without a request."""
    from backends_app.executors import get_executor
    from backends_app.thread_shares import thread_shares

    thread_shares.set_threads(worker.cfg.threads)
    get_executor().ensure_started(wait_s=0)
